"""The teacher's view of the batch, of ready parts."""

from types import SimpleNamespace

import pytest
import torch

from lightning_kd.configurable import describe, restore
from lightning_kd.teachers import Chain, Keys, Renormalize, Resize, TeacherInputs


def test_renormalized_images_are_the_raw_ones_normalised_for_the_teacher():
    raw = torch.rand(2, 2, 3, 3, dtype=torch.float64)
    ours, theirs = ([0.5, 0.4], [0.2, 0.3]), ([0.1, 0.6], [0.5, 0.7])

    def normalised(mean, std):
        return (raw - torch.tensor(mean).double().view(2, 1, 1)) / torch.tensor(std).double().view(2, 1, 1)

    (image, labels), named = Renormalize(*ours, *theirs)((normalised(*ours), torch.arange(2)), {"x": normalised(*ours)})
    torch.testing.assert_close(image, normalised(*theirs), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(named["x"], normalised(*theirs), rtol=1e-6, atol=1e-6)
    assert labels.equal(torch.arange(2))


def test_the_students_inputs_stay_as_they_are():
    image = torch.ones(1, 1, 2, 2)
    Renormalize([0.0], [1.0], [1.0], [2.0])((image,), {})
    assert image.equal(torch.ones(1, 1, 2, 2))


def test_the_numbers_of_timm_and_of_torchvision():
    timm = SimpleNamespace(pretrained_cfg={"mean": (0.5,), "std": (0.25,)})
    torchvision = SimpleNamespace(transforms=lambda: SimpleNamespace(mean=[0.1], std=[0.2]))
    made = Renormalize.between(timm, torchvision)
    assert made.options() == {"mean": [0.5], "std": [0.25], "to_mean": [0.1], "to_std": [0.2]}
    with pytest.raises(ValueError, match="Linear does not tell its mean and std"):
        Renormalize.between(torch.nn.Linear(1, 1), timm)


def test_a_chain_goes_through_its_parts_in_order():
    view = Chain([Keys(rename={"x": "image"}, drop=["y"], add={"mode": 1}), Resize([4, 6])])
    args, kwargs = view((), {"x": torch.zeros(1, 1, 2, 3), "y": 0})
    assert args == ()
    assert kwargs["image"].shape == (1, 1, 4, 6)
    assert list(kwargs) == ["image", "mode"]


def test_a_view_is_plain_data():
    view = Chain([Resize(8, antialias=False), Keys(drop=["y"]), Renormalize([0], [1], [0.5], [2])])
    copy = restore(describe(view), TeacherInputs)
    assert describe(copy) == describe(view)


def test_what_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"Keys: the student was not called with \['z'\], but with \['x'\]"):
        Keys(drop=["z"])((), {"x": 1})
    with pytest.raises(ValueError, match=r"Renormalize: none of the inputs is a batch of images .* of 1 channels"):
        Renormalize([0], [1], [0.5], [2])((torch.zeros(1, 3, 2, 2),), {})
    with pytest.raises(ValueError, match="Renormalize: expected as many means as deviations"):
        Renormalize([0, 0], [1], [0.5], [2])


def test_numbers_that_are_left_out_are_read_from_the_networks():
    student = SimpleNamespace(pretrained_cfg={"mean": (0.5,), "std": (0.25,)})
    teacher = SimpleNamespace(default_cfg={"mean": (0.25,), "std": (0.5,)})
    view = Chain([Renormalize()])
    assert not view.ready
    with pytest.raises(ValueError, match="Renormalize: expected mean, std, to_mean and to_std, since"):
        view((torch.ones(1, 1, 2, 2),), {})
    view.see_networks(student, teacher)
    assert view.ready
    (image,), _ = view((torch.ones(1, 1, 2, 2),), {})
    assert image.unique().tolist() == [(1 * 0.25 + 0.5 - 0.25) / 0.5]
    assert describe(view) == describe(Chain([Renormalize()]))  # a checkpoint makes it read them again
    half = Renormalize([0.0], [1.0])
    half.see_networks(torch.nn.Linear(1, 1), teacher)
    (image,), _ = half((torch.ones(1, 1, 2, 2),), {})
    assert image.unique().tolist() == [1.5]
    with pytest.raises(ValueError, match="Linear does not tell its mean and std; write Renormalize"):
        Renormalize([0.0], [1.0]).see_networks(student, torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="Renormalize: expected mean and std together"):
        Renormalize([0.5])
