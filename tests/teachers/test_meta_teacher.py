"""A teacher that was built on the meta device takes its weights from files when a run is set up."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lightning_kd import DistillationCallback
from lightning_kd.teachers import materialize
from tests import support


@pytest.fixture
def files(tmp_path):
    """The teacher's weights in two files."""
    weights = sorted(support.teacher().state_dict().items())
    save_file(dict(weights[:3]), tmp_path / "1.safetensors")
    torch.save(dict(weights[3:]), tmp_path / "2.pt")
    return [str(tmp_path / "1.safetensors"), str(tmp_path / "2.pt")]


def trained(door, guide, **options):
    if door == "module":
        made, callbacks = support.module(teacher=guide, **options), []
        net = made.student
    else:
        made, callbacks = support.through("callback")
        callbacks, net = [DistillationCallback(guide, support.default_losses(), **options)], made.net
    support.fit(made, callbacks=callbacks)
    return net


@pytest.mark.parametrize("door", ["module", "callback"])
def test_it_teaches_what_the_whole_teacher_teaches(door, files):
    late = trained(door, support.teacher().to("meta"), teacher_weights=files)
    support.assert_same_weights(late, trained(door, support.teacher()))


def test_it_is_there_for_an_evaluation_alone(files):
    late = support.module(teacher=support.teacher().to("meta"), teacher_weights=files)
    whole = support.module()
    results = [support.trainer().validate(made, support.loader(), verbose=False) for made in (late, whole)]
    assert results[0] == results[1]


def test_no_file_is_named():
    with pytest.raises(ValueError, match=r"teacher ConvNet is on the meta device.*teacher_weights="):
        support.fit(support.module(teacher=support.teacher().to("meta")))


def test_files_that_do_not_hold_the_whole_teacher(files):
    with pytest.raises(ValueError, match=r"1\.safetensors: no weights for \['features.*all files"):
        materialize(support.teacher().to("meta"), files[0], "cpu")


def test_files_of_another_architecture(files):
    with pytest.raises(ValueError, match=r"1\.safetensors.*'features.0.bias' of shape \(8,\).*no such weight"):
        materialize(nn.Linear(2, 1).to("meta"), files, "cpu")


def test_a_missing_file():
    with pytest.raises(FileNotFoundError, match=r"no file 'nowhere\.pt'"):
        materialize(nn.Linear(2, 1).to("meta"), "nowhere.pt", "cpu")


def test_a_buffer_on_a_real_device_keeps_its_values(tmp_path):
    model = nn.Linear(2, 1, bias=False).to("meta")
    model.register_buffer("scale", torch.tensor([3.0]), persistent=False)
    save_file({"weight": torch.ones(1, 2)}, tmp_path / "w.safetensors")
    materialize(model, tmp_path / "w.safetensors", "cpu")
    assert model.scale.item() == 3.0


def test_tied_weights_need_to_be_in_the_file_once(tmp_path):
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    save_file({"0.weight": torch.ones(2, 2)}, tmp_path / "w.safetensors")
    materialize(model, tmp_path / "w.safetensors", "cpu")
    assert model[1].weight.data_ptr() == model[0].weight.data_ptr()
    assert torch.equal(model[1].weight, torch.ones(2, 2))
