"""Lightning's own hooks are empty, so people override them without super(): distillation goes on all the same."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_kd import DistillationModule
from lightning_kd.losses import KDLoss
from lightning_kd.schedules import LinearSchedule
from tests import support

HOOKS = [
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_optimizer_step",
    "on_train_epoch_end",
    "on_validation_epoch_start",
    "on_validation_epoch_end",
    "on_test_epoch_start",
    "on_test_epoch_end",
    "teardown",
    "on_save_checkpoint",
    "on_load_checkpoint",
    "configure_callbacks",
]


def overriding(*names):
    """A module whose user has written these hooks, and nothing of ours in them."""

    def hook(self, *args, **kwargs):
        return []

    return type("Overriding", (DistillationModule,), dict.fromkeys(names, hook))


def made(cls):
    losses = [KDLoss(weight=LinearSchedule(0.0, 1.0, length=4, unit="step")), *support.default_losses()]
    return cls(
        support.student(),
        support.teacher(),
        losses,
        task_loss=nn.CrossEntropyLoss(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    )


def fitted(cls, **options):
    module = made(cls)
    trainer = support.fit(module, **options)
    return module, {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("names", [*((name,) for name in HOOKS), tuple(HOOKS)], ids=lambda n: "+".join(n)[:30])
def test_an_override_without_super_changes_nothing(names):
    (plain, plain_metrics), (module, metrics) = fitted(DistillationModule), fitted(overriding(*names))
    support.assert_same_weights(plain, module)
    assert plain.losses["kd"].weight_now == module.losses["kd"].weight_now > 0
    assert metrics == plain_metrics
    assert module.run.results == plain.run.results


@pytest.mark.parametrize("names", [("on_save_checkpoint", "on_load_checkpoint"), tuple(HOOKS)], ids=["both", "all"])
def test_a_run_resumes_exactly_whatever_is_overridden(names, tmp_path):
    cls = overriding(*names)
    whole, _ = fitted(cls, callbacks=[support.SaveEveryStep(tmp_path)])
    resumed, _ = fitted(cls, ckpt_path=tmp_path / "4.ckpt", seed=99)
    support.assert_same_weights(whole, resumed)


class WithoutSetUp(DistillationModule):
    def setup(self, stage):
        self.more = stage


@pytest.mark.parametrize("task", ["fit", "validate", "test"])
def test_a_set_up_without_super_is_refused_with_the_line_to_add(task):
    trainer = support.trainer()
    with pytest.raises(RuntimeError, match=r"WithoutSetUp\.setup .* super\(\)\.setup\(stage\)"):
        getattr(trainer, task)(made(WithoutSetUp), *[support.loader()] * (2 if task == "fit" else 1))


class WithoutLosses(DistillationModule):
    def configure_optimizers(self):
        return torch.optim.SGD(self.student.parameters(), lr=0.1)


def test_optimizers_that_leave_the_losses_out_are_refused_with_the_line_to_add():
    words = r"No optimizer has the parameters \[.hint.*self\.trained_parameters\(\)"
    with pytest.raises(MisconfigurationException, match=words):
        support.fit(made(WithoutLosses))
    support.fit(WithoutLosses(support.student(), support.teacher(), [KDLoss()]))  # which has none


class Flattening(torch.optim.SGD):
    """Holds copies of the parameters, and keeps what it was given in an attribute, as DeepSpeed's do."""

    def __init__(self, parameters):
        super().__init__([torch.zeros(1, requires_grad=True)], lr=0.1)
        self.bit16_groups = [list(parameters)]


@pytest.mark.parametrize("left_out", [True, False])
def test_an_optimizer_that_flattens_is_asked_what_it_was_given(left_out):
    cls = type("Flat", (DistillationModule,), {})
    cls.configure_optimizers = lambda self: Flattening((self.student if left_out else self).parameters())
    if left_out:
        with pytest.raises(MisconfigurationException, match="No optimizer has the parameters"):
            support.fit(made(cls))
    else:
        support.fit(made(cls))
