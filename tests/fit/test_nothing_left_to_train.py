"""A run in which nothing trains after the first stage is refused at set-up, not when the stage ends."""

import pytest

from lightning_kd.losses import ABLoss, KDLoss
from tests import support


def fit(*losses, **options):
    made = support.module(
        support.StagedNet(3),
        teacher=support.StagedNet(4),
        losses=list(losses),
        task_loss=options.pop("task_loss", None),
    )
    return support.fit(made, **{"max_epochs": 3, **options})


def test_a_stage_and_then_nothing_is_refused():
    words = r"first stage of 'ab' ends after 2 epoch\(s\).*task_loss.*stage_length=0"
    with pytest.raises(ValueError, match=words):
        fit(ABLoss("stage1", "stage1", stage_length=2))


def test_something_may_be_left():
    fit(ABLoss("stage1", "stage1", stage_length=1), KDLoss())
    fit(ABLoss("stage1", "stage1", stage_length=0))


@pytest.mark.filterwarnings("ignore:The first stage takes 3 epoch")
def test_a_stage_may_be_the_whole_run():
    fit(ABLoss("stage1", "stage1", stage_length=3))
