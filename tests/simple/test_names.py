"""Networks by name, where the libraries are not there: what is said."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_kd import distill
from lightning_kd.named import fresh, pretrained
from lightning_kd.named.names import parse
from lightning_kd.named.wanted import classes_of, tell, wanted_by
from lightning_kd.simple.pair import labels_of
from lightning_kd.teachers.normalisation import statistics_of

EXTRAS = {"timm:resnet18": "timm", "torchvision:resnet18": "torchvision", "hf:folder": "hf"}


@pytest.mark.parametrize("name", EXTRAS)
def test_a_library_that_is_not_there_is_told_with_its_extra(name, monkeypatch):
    for module in ("timm", "torchvision", "transformers"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    words = rf"cannot be imported .*: pip install 'lightning_kd\[{EXTRAS[name]}\]'\."
    for call in (
        lambda: pretrained(name),
        lambda: fresh(name, 3),
        lambda: distill(name, nn.Linear(4, 3), torch.zeros(4, 4)),
        lambda: distill(nn.Linear(4, 3), name, torch.zeros(4, 4)),
    ):
        with pytest.raises(ImportError, match=words):
            call()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("resnet18", "'resnet18' names no network. Expected such as 'timm:resnet18'"),
        ("timm:", "'timm:' names no network. Expected such as"),
        ("torchvison:resnet18", "Did you mean 'torchvision:resnet18'?"),
        ("HF:a/b", "Did you mean 'hf:a/b'?"),
    ],
)
def test_a_text_of_another_form_is_refused(text, words):
    with pytest.raises(ValueError, match="names no network") as caught:
        parse(text)
    assert words in str(caught.value)


def test_a_folder_without_its_library_is_recognised(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=f"Did you mean 'hf:{tmp_path}'"):
        parse(str(tmp_path))


def test_what_a_network_tells_is_read_and_is_none_of_its_weights():
    net = nn.Linear(4, 3)
    for nothing in (net, None):
        assert wanted_by(nothing) == (None, None, False)
        assert classes_of(nothing) is None
    tell(net, statistics=([0.1], [0.2]), size=(8, 9), classes=3, names=["a", "b", "c"])
    assert wanted_by(net) == (([0.1], [0.2]), (8, 9), False)
    assert wanted_by(net).channels == 1
    assert classes_of(net) == 3
    assert statistics_of(net) == ([0.1], [0.2])
    assert list(net.state_dict()) == ["weight", "bias"]


def known(rows, there):
    found = labels_of(rows, there=there)
    return found.number, found.names, found.exact


def test_labels_tell_how_many_classes_there_are_at_least():
    rows = TensorDataset(torch.zeros(3, 2), torch.tensor([0, 4, 1]))
    assert known(rows, True) == (5, None, False)
    rows.classes = ["a", "b"]
    assert known(rows, True) == (2, ["a", "b"], True)
    assert known(rows, False) == (None, None, False)
    assert known(None, None) == (None, None, False)


def test_classes_and_their_names_have_to_fit():
    for classes, names in ((0, None), (2, ["a"])):
        with pytest.raises(ValueError, match="expected classes >= 1 and a name for each"):
            fresh("timm:resnet18", classes, names)
