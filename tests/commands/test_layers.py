"""``lightning-kd layers``: shapes, parameters and cost as counted by hand, and pairs that a fit takes."""

import re

import pytest
import yaml
from torch import nn

from lightning_kd.commands.layers import _suggested
from lightning_kd.doctor.pairs import Pair
from lightning_kd.losses import HintLoss

from .conftest import FIT

QUIET = "trainer: {logger: false"


@pytest.fixture
def shown(call, tmp_path):
    """Print the layers of the configuration, changed by pairs of old and new text."""

    def run(*words, change=()):
        text = FIT
        for old, new in change:
            assert old in text
            text = text.replace(old, new, 1)
        (tmp_path / "fit.yaml").write_text(text)
        return call("layers", "--config", f"{tmp_path}/fit.yaml", *words)

    return run


ROLES = ("student", "teacher")


def cells(out, role, name):
    """The cells of a layer's row in the table of a role."""
    table = out[out.index(f"{role}:") :]
    return re.split(r"  +", re.search(rf"^  {re.escape(name)} .*$", table, re.MULTILINE).group().strip())


def test_shapes_parameters_and_cost_are_those_of_the_networks(shown):
    code, out, _ = shown("--rows", "16")
    assert code == 0
    # a 3 x 3 convolution from 2 to 4 channels without offset, on 4 x 4 positions: 2 * 9 * 2 * 4 * 16 = 2304
    # the whole: 2304 for the first (2 * 9 * 2 * 64), 2304, 2304 (2 * 9 * 4 * 8 * 4), and the head 2 * 8 * 10 = 160
    assert cells(out, "student", "stage2.conv") == ["stage2.conv", "Conv2d", "(16, 4, 4, 4)", "72", "32.6%"]
    assert cells(out, "student", "stage3") == ["stage3", "Sequential", "(16, 8, 2, 2)", "304", "32.6%"]
    assert "student: DigitsConvNet, 496 parameters, 7.07 kFLOP a sample" in out
    assert cells(out, "teacher", "stage2.conv")[2] == "(16, 6, 4, 4)"


def test_the_depth_of_the_table_is_an_option(shown):
    out = shown("--depth=1")[1]
    assert "stage1.conv" not in out
    assert cells(out, "student", "stage1")[1] == "Sequential"


class Blocks(nn.Module):
    """Blocks in a list, inside a part of the network, as transformers have them."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.body = nn.Module()
        self.body.layers = nn.ModuleList([nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(2)])
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        x = x.flatten(1)
        for layer in self.body.layers:
            x = layer(x)
        return self.head(x)


def test_a_list_of_blocks_is_no_depth_of_its_own_and_suggested_layers_are_shown(shown):
    change = [(f"{role}: {{class_path: DigitsConvNet", f"{role}: {{class_path: {__name__}.Blocks") for role in ROLES]
    out = shown("--rows=4", change=change)[1]
    assert cells(out, "student", "body.layers.0")[1] == "Sequential"
    assert "body.layers.0.0 " not in out
    out = shown("--rows=4", "--depth=1", change=change)[1]
    assert cells(out, "student", "body.layers.1")[1] == "Sequential"  # which a pair names


def test_the_suggested_pairs_are_yaml_that_a_fit_takes(shown, fit_with):
    out = shown("--depth=1")[1]
    pasted = out[out.index("# Suggested pairs") :]
    losses = yaml.safe_load(pasted)["model"]["losses"]
    pairs = [(loss["init_args"]["student"], loss["init_args"]["teacher"]) for loss in losses]
    assert pairs == [("stage1", "stage1"), ("stage2", "stage2"), ("stage3", "stage3"), ("embedding", "embedding")]
    assert "end of stage 1 of 3; 33% of the student's depth, 33% of the teacher's; CKA " in pasted
    assert fit_with(f"--model.losses={yaml.safe_dump(losses, default_flow_style=True, width=10_000)}")[0] == 0


def test_losses_that_name_layers_wrongly_do_not_matter(shown):
    wrong = "{class_path: HintLoss, init_args: {student: nowhere, teacher: nowhere}}"
    assert shown("--depth=1", change=[("- HintLoss", f"- {wrong}")])[0] == 0


def test_without_a_teacher_the_student_alone_is_shown(shown):
    teacher = "  teacher: {class_path: DigitsConvNet, init_args: {width: 3}}\n"
    code, out, _ = shown("--depth=1", change=[(teacher, "")])
    assert code == 0
    assert "teacher: none, which has no layers." in out
    assert "Suggested" not in out


def test_a_missing_file_is_told_in_a_line(call):
    code, out, err = call("layers", "--config", "nowhere.yaml")
    assert (code, out) == (2, "")
    assert "There is no file 'nowhere.yaml'" in err


def test_layers_of_a_sequential_are_suggested_as_text():
    pair = Pair("1", "2", HintLoss, "the same place", 0.5)
    (part,) = yaml.safe_load(_suggested([pair], ""))["model"]["losses"]
    assert part["init_args"] == {"student": "1", "teacher": "2"}
