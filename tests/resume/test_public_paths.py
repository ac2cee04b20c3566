"""Checkpoints name classes as users do, so that files may move inside the package."""

import inspect

import pytest
import torch

import lightning_kd
from lightning_kd import losses, projectors, schedules
from lightning_kd.configurable import Configurable, describe, restore
from lightning_kd.losses import DistillationLoss, KDLoss
from tests import support

PUBLIC = {"lightning_kd.losses": losses, "lightning_kd.schedules": schedules, "lightning_kd.projectors": projectors}


def public_parts():
    things = {
        thing
        for module in (lightning_kd, *PUBLIC.values())
        for thing in vars(module).values()
        if inspect.isclass(thing)
    }
    return [thing for thing in things if issubclass(thing, Configurable) and not inspect.isabstract(thing)]


@pytest.mark.parametrize("name", sorted(set(support.exported_losses()) - {"MutualLearning"}))  # is made of networks
def test_a_loss_is_named_by_the_package_that_shows_it(name):
    assert describe(support.default_loss(name))["class_path"] == f"lightning_kd.losses.{name}"


def test_schedules_and_projectors_are_named_by_their_modules():
    assert describe(schedules.CosineSchedule(1, 2, 3))["class_path"] == "lightning_kd.schedules.CosineSchedule"
    assert describe(projectors.ConvProjector())["class_path"] == "lightning_kd.projectors.ConvProjector"
    temperature = losses.AdaptiveTemperature()
    assert describe(temperature)["class_path"] == "lightning_kd.losses.AdaptiveTemperature"


def test_every_part_of_ours_has_a_name_of_its_own():
    names = [cls.__name__ for cls in public_parts()]
    assert len(names) > 25
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "path", ["lightning_kd.losses.logits.kd.KDLoss", "lightning_kd.losses.KDLoss", "lightning_kd.any.where.KDLoss"]
)
def test_a_path_of_an_earlier_version_still_leads_to_its_class(path):
    assert type(restore({"class_path": path, "init_args": {"weight": 3.0}}, DistillationLoss)) is KDLoss


def test_nothing_else_of_ours_is_made_by_its_name():
    with pytest.raises(ValueError, match=r"names the class 'lightning_kd\.losses\.base\.KDLos', which is not"):
        restore({"class_path": "lightning_kd.losses.base.KDLos", "init_args": {}}, DistillationLoss)
    with pytest.raises(ValueError, match="CosineSchedule"):
        restore({"class_path": "lightning_kd.schedules.CosineSchedule", "init_args": {}}, DistillationLoss)


class Mine(KDLoss):
    """A loss of a user."""


def test_a_users_class_is_named_by_its_own_module():
    path = describe(Mine())["class_path"]
    assert path == f"{__name__}.Mine"
    assert type(restore({"class_path": path, "init_args": {}}, DistillationLoss)) is Mine


def test_a_checkpoint_names_public_paths(tmp_path):
    support.fit(support.module(), max_epochs=1).save_checkpoint(tmp_path / "a.ckpt")
    options = torch.load(tmp_path / "a.ckpt", weights_only=True)["hyper_parameters"]
    assert [loss["class_path"] for loss in options["losses"]] == [
        "lightning_kd.losses.KDLoss",
        "lightning_kd.losses.HintLoss",
    ]
