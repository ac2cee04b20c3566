"""Hybrids and schedules in a fit: the engine sees the leaves, logs the children, and moves time on."""

import pytest
import torch
from torch import nn

from lightning_kd.losses import ATLoss, HintLoss, HybridLoss, KDLoss
from lightning_kd.schedules import LinearSchedule, StepSchedule
from lightning_kd.teachers import EMATeacher
from tests import support
from tests.fit.test_stages import Initialised

DOORS = ["module", "callback"]


def fitted(door, losses, **options):
    net = support.student()
    torch.manual_seed(5)
    made, callbacks = support.through(door, net, losses=losses)
    return net, support.fit(made, callbacks=[*callbacks, *options.pop("callbacks", [])], **options)


@pytest.mark.parametrize("door", DOORS)
def test_a_nested_hybrid_trains_as_its_losses_do_alone(door):
    flat = [KDLoss(2.0, weight=0.5), HintLoss("features", "features", weight=2.0), ATLoss("features", "features")]
    nested = [
        HybridLoss(
            [
                HybridLoss([KDLoss(2.0), HintLoss("features", "features", weight=4.0)], weight=0.5),
                ATLoss("features", "features"),
            ]
        )
    ]
    one, _ = fitted(door, flat)
    two, trainer = fitted(door, nested)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], value)
    logged = {name for name in trainer.callback_metrics if name.startswith("train/hybrid")}
    assert logged == {"train/hybrid", "train/hybrid/hybrid", "train/hybrid/at"}


def test_the_networks_are_read_once_for_the_union_of_the_layers():
    hybrid = HybridLoss([HintLoss("features", "features"), ATLoss(["features"], ["features"]), KDLoss()])
    assert (hybrid.student_layers, hybrid.teacher_layers) == (("features",), ("features",))
    module = support.module(losses=[hybrid])
    assert module.run.step.capture.layers == ("features",)


def test_layers_are_chosen_for_the_losses_inside_and_come_back_from_a_checkpoint(tmp_path):
    module = support.module(losses=[HybridLoss([KDLoss(), HintLoss(), ATLoss()])])
    support.fit(module, max_epochs=1).save_checkpoint(tmp_path / "last.ckpt")
    again = type(module).load_from_checkpoint(
        tmp_path / "last.ckpt", student=support.student(), teacher=support.teacher(), task_loss=nn.CrossEntropyLoss()
    )
    assert again.losses["hybrid"].losses[1].student == "features"
    support.assert_same_weights(module, again)


@pytest.mark.parametrize("balance", ["none", "magnitude", "uncertainty"])
@pytest.mark.parametrize("at", [1, 4])
def test_a_balanced_run_resumes_exactly(balance, at, tmp_path):
    def losses():
        return [HybridLoss([KDLoss(weight=LinearSchedule(0.0, 1.0, 5, unit="step")), HintLoss()], balance=balance)]

    options = {"train": support.ResumableLoader(), "max_epochs": 2}
    whole, _ = fitted("module", losses(), callbacks=[support.SaveEveryStep(tmp_path)], **options)
    resumed, _ = fitted("module", losses(), ckpt_path=tmp_path / f"{at}.ckpt", seed=99, **options)
    support.assert_same_weights(whole, resumed)


@pytest.mark.parametrize("door", DOORS)
def test_a_schedule_moves_with_the_steps_and_the_epochs(door):
    seen = []

    class Watched(KDLoss.__base__):
        needs_teacher_logits = True

        def forward(self, student, teacher):
            seen.append((self.weight_now, self.now(self.temperature)))
            return (student - teacher).square().mean()

    loss = Watched(weight=LinearSchedule(2.0, 0.0, length=8, unit="step"))
    loss.temperature = StepSchedule([4.0, 1.0], [1])
    fitted(door, [loss], max_epochs=2)
    assert seen == [(2.0, 4.0), (1.75, 4.0), (1.5, 4.0), (1.25, 1.0), (1.0, 1.0), (0.75, 1.0)]


def test_the_tasks_weight_moves_too_and_comes_back_from_a_checkpoint(tmp_path):
    module = support.module(losses=[KDLoss(weight=0.5)], task_weight=LinearSchedule(1.0, 0.0, length=2))
    trainer = support.fit(module, max_epochs=2)  # the second epoch at 0.5
    value = {name: float(v) for name, v in trainer.callback_metrics.items()}
    assert value["train/loss"] == pytest.approx(0.5 * value["train/task"] + 0.5 * value["train/kd"], rel=1e-6)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = type(module).load_from_checkpoint(tmp_path / "last.ckpt", student=support.student(), teacher=None)
    assert again.task_weight.length == 2


@pytest.mark.filterwarnings("ignore:The first stage takes 1:UserWarning")
def test_a_staged_loss_inside_a_hybrid_has_its_stage_and_then_waits():
    module = support.module(losses=[HybridLoss([Initialised(1), KDLoss()])])
    trainer = support.fit(module, max_epochs=1)
    assert {n for n in trainer.callback_metrics if "train" in n} == {"train/loss", "train/hybrid.initialised"}
    trainer = support.fit(support.module(losses=[HybridLoss([Initialised(1), KDLoss()])]), max_epochs=2)
    assert {"train/hybrid/kd", "train/task"} <= set(trainer.callback_metrics)
    assert "train/hybrid/initialised" not in trainer.callback_metrics


def test_a_hybrid_learns_from_the_mean_teacher():
    module = support.module(teacher=None, losses=[HybridLoss([KDLoss(), HintLoss("features", "features")])])
    trainer = support.fit(module, callbacks=[EMATeacher()])
    assert trainer.callback_metrics["train/hybrid/kd"] > 0
