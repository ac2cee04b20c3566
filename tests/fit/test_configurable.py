"""Parts as plain data: what is written, what is read back, and what is refused."""

import json

import pytest
import torch

from lightning_kd.configurable import Configurable, describe, restore
from lightning_kd.losses import DistillationLoss, HintLoss, KDLoss
from lightning_kd.projectors import ConvRegressor, LinearProjector, Projector
from tests.support.names import named


class Box(Configurable):
    """A part that holds anything."""

    def __init__(self, content: object = None, *, label: str = "box") -> None:
        self.content = content
        self.label = label


class Shelf(Configurable):
    """A part that forgets its argument."""

    def __init__(self, boxes: int = 1) -> None:
        self.number = boxes


@pytest.mark.parametrize(
    "content",
    [
        None,
        True,
        3,
        0.5,
        "text",
        [1, "a", None],
        {"a": 1, "b": {"c": [2.0]}},
        Box(1),
        [Box(Box("x")), 2],
        {"k": Box(1)},
    ],
    ids=named,
)
def test_plain_data_and_parts_come_back(content: object) -> None:
    description = json.loads(json.dumps(describe(Box(content, label="mine"))))
    again = restore(description, Configurable)
    assert isinstance(again, Box)
    assert again.label == "mine"
    assert describe(again) == description
    assert type(again.content) is type(content)


def test_a_tuple_becomes_a_list() -> None:
    assert Box((1, 2)).options() == {"content": [1, 2], "label": "box"}


@pytest.mark.parametrize(
    "content", [torch.zeros(1), object(), [lambda: 0], {"a": {1, 2}}], ids=lambda c: type(c).__name__
)
def test_anything_else_is_refused_by_name(content: object) -> None:
    with pytest.raises(TypeError, match=r"Box: argument 'content' is a .*; expected plain data or a Configurable"):
        describe(Box(content))


def test_an_argument_that_is_not_kept_is_found() -> None:
    with pytest.raises(AttributeError, match="boxes"):
        Shelf(2).options()


@pytest.mark.parametrize("path", ["os.system", "subprocess.Popen", "builtins.eval", "missing.Part"])
def test_nothing_but_a_part_is_made(path: str) -> None:
    with pytest.raises(ValueError, match=path.replace(".", r"\.")):
        restore({"class_path": path, "init_args": {"content": "true"}}, Configurable)


def test_a_part_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="not an imported Projector"):
        restore(describe(KDLoss()), Projector)
    with pytest.raises(ValueError, match="not an imported Configurable"):
        restore(describe(Box({"class_path": "os.system", "init_args": {"command": "true"}})), Configurable)


def test_arguments_must_be_a_mapping() -> None:
    with pytest.raises(ValueError, match="has no mapping 'init_args'"):
        restore({**describe(Box()), "init_args": [1]}, Configurable)


def test_a_loss_with_its_projector_is_plain_data() -> None:
    loss = HintLoss(["a", "c"], ["b", "d"], weight=100.0, projector=LinearProjector(bias=False))
    assert describe(loss) == {
        "class_path": "lightning_kd.losses.HintLoss",
        "init_args": {
            "student": ["a", "c"],
            "teacher": ["b", "d"],
            "layout": None,
            "weight": 100.0,
            "projector": {"class_path": "lightning_kd.projectors.LinearProjector", "init_args": {"bias": False}},
        },
    }


def test_a_description_holds_neither_sizes_nor_weights() -> None:
    loss = HintLoss("a", "b", projector=ConvRegressor())
    before = describe(loss)
    loss.build({"a": (2, 3, 4, 4)}, {"b": (2, 5, 4, 4)})
    assert describe(loss) == before
    again = restore(before, DistillationLoss)
    assert isinstance(again, HintLoss)
    assert not list(again.parameters())


def test_parts_inside_lists_and_mappings_are_made_again() -> None:
    again = restore(json.loads(json.dumps(describe(Box([Box("a"), {"inner": [Box("b")]}])))), Configurable)
    assert isinstance(again, Box)
    content = again.content
    assert isinstance(content, list)
    first, second = content[0], content[1]["inner"][0]
    assert isinstance(first, Box)
    assert isinstance(second, Box)
    assert (first.content, second.content) == ("a", "b")
