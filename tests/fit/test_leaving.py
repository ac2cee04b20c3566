"""However a fit ends, it leaves student, teacher, module and Trainer as they were."""

import pickle

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from lightning_kd import DistillationCallback
from lightning_kd.fit.patches import Patches
from lightning_kd.losses import FTLoss, HintLoss, KDLoss
from tests import support

DOORS = ["module", "callback"]


class Failing(Callback):
    """Breaks a fit off in its second batch."""

    def __init__(self, error):
        self.error = error

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1:
            raise self.error


class OwnError(Exception):
    """An error of the user's code."""


def marks(net):
    """What hangs on a network, and would leave with it."""
    tables = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_state_dict_hooks",
        "_load_state_dict_pre_hooks",
    )
    return [(name, table) for name, part in net.named_modules() for table in tables if getattr(part, table)]


def fit_that_ends(how, door):
    losses = [KDLoss(), HintLoss("features", "features"), FTLoss("features", "features", stage_length=1)]
    guide = support.teacher(classes=7) if how == "refused" else support.teacher()  # other logits, found at set-up
    module, callbacks = support.through(door, guide=guide, losses=losses)
    before = dict(vars(module))
    trainer = support.trainer(callbacks=callbacks)
    given = list(trainer.callbacks)
    error = {"failed": OwnError, "interrupted": KeyboardInterrupt, "refused": ValueError, "finished": None}[how]
    if how in ("failed", "interrupted"):
        trainer.callbacks.append(Failing(error()))
        given = list(trainer.callbacks)
    if error is None:
        trainer.fit(module, support.loader(), support.loader())
    else:
        with pytest.raises((error, SystemExit)):
            trainer.fit(module, support.loader(), support.loader())
    return module, guide, trainer, given, before


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("how", ["finished", "failed", "interrupted", "refused"])
def test_nothing_stays_on_the_networks_or_the_trainer(how, door):
    module, guide, trainer, given, before = fit_that_ends(how, door)
    student = module.student if door == "module" else module.net
    assert marks(student) == marks(guide) == []
    assert "training_step" not in vars(module)
    assert set(vars(module)) <= {*before, "_hparams"}  # Lightning makes it when it is first asked for
    assert "_kd" not in module._modules
    assert trainer.callbacks == given
    loops = (trainer.fit_loop, trainer.fit_loop.epoch_loop, trainer.strategy)
    assert not [
        name for one in loops for name in vars(one) if name in ("reset", "_should_check_val_fx", "process_dataloader")
    ]
    assert b"lightning_kd" not in pickle.dumps(student)


def test_patches_are_taken_back_in_the_reverse_order():
    class Theirs:
        def f(self):
            return 0

    theirs, patches = Theirs(), Patches()
    theirs.g = "before"
    patches.replace(theirs, "f", lambda: 1)
    patches.replace(theirs, "f", lambda: 2)
    patches.replace(theirs, "g", "after")
    patches.put_back(theirs, "f")
    assert theirs.f() == 1
    patches.undo_all()
    assert (theirs.f(), theirs.g, vars(theirs)) == (0, "before", {"g": "before"})
    patches.undo_all()  # nothing is left to undo


def test_a_method_is_followed_or_replaced_once():
    class Theirs:
        calls = 0

        def f(self):
            self.calls += 1
            return self.calls

    theirs, patches, after = Theirs(), Patches(), []
    patches.after(theirs, "f", lambda: after.append(theirs.calls))
    assert [theirs.f(), theirs.f()] == [1, 2]
    assert after == [1]
    patches.once(theirs, "f", lambda: "mine")
    assert [theirs.f(), theirs.f()] == ["mine", 3]
    assert pickle.loads(pickle.dumps(patches)).undo_all() is None


def test_hooks_of_torch_are_taken_off():
    net, patches = nn.Linear(1, 1), Patches()
    patches.add(net.register_forward_hook(lambda *_: None))
    patches.undo_all()
    assert marks(net) == []
    assert isinstance(net(torch.ones(1, 1)), torch.Tensor)


def test_two_callbacks_in_turn_leave_a_module_usable():
    module = support.UserModule(support.student())
    for _ in range(2):
        support.fit(module, callbacks=[DistillationCallback(support.teacher(), [KDLoss()])])
    assert marks(module.net) == []


@pytest.mark.parametrize("first", [0, 1])
def test_two_that_replace_one_method_are_taken_back_in_any_order(first):
    class Theirs:
        def step(self):
            return 1

    theirs, both = Theirs(), (Patches(), Patches())
    both[0].replace(theirs, "step", lambda: 2)
    both[1].replace(theirs, "step", lambda: 3)
    both[first].undo_all()
    assert theirs.step() == (3 if first == 0 else 2)
    both[1 - first].undo_all()
    assert vars(theirs) == {}
