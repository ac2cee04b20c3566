"""Arms of one seed see the same batches and begin with the same student, whatever their losses draw."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import nn

from lightning_kd import DistillationModule
from lightning_kd.comparison import SameDraws, SameRows
from lightning_kd.data import DigitsConvNet, DigitsDataModule
from lightning_kd.losses import CRDLoss, HintLoss, KDLoss


class Seen(Callback):
    """Keeps what a fit has seen: the batches, and the student at their beginning."""

    def __init__(self):
        self.batches = []
        self.student = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.student is None:
            self.student = [p.detach().clone() for p in pl_module.student.parameters()]
        self.batches.append((batch[0].clone(), torch.rand(3)))


class Student(nn.Module):
    """A student that draws numbers too."""

    def __init__(self):
        super().__init__()
        self.net, self.dropout = DigitsConvNet(width=2), nn.Dropout(0.2)

    def forward(self, x):
        return self.net(self.dropout(x))


def seen(*losses, same=True, seed=1, val=2, **options):
    seed_everything(seed, verbose=False)
    callbacks = [Seen(), *([SameDraws(seed)] if same else [])]
    module = DistillationModule(
        Student(),
        DigitsConvNet(width=3) if losses else None,
        losses=list(losses) or None,
        task_loss=nn.CrossEntropyLoss(),
        optimizer=partial(torch.optim.SGD, lr=0.1),
    )
    data = SameRows(DigitsDataModule(batch_size=300), seed, with_index=any(one.needs_index for one in losses))
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        limit_val_batches=val,
        callbacks=callbacks,
        **dict.fromkeys(quiet, False),
        **options,
    )
    trainer.fit(module, datamodule=data)
    return callbacks[0]


def same(one, two):
    batches = len(one.batches) == len(two.batches) and all(
        torch.equal(a, b) for pair in zip(one.batches, two.batches, strict=True) for a, b in zip(*pair, strict=True)
    )
    return batches, all(torch.equal(a, b) for a, b in zip(one.student, two.student, strict=True))


@pytest.mark.parametrize(
    "losses",
    [(lambda: HintLoss("net.stage2", "stage2"), KDLoss), (lambda: CRDLoss("net.stage3", "stage3", negatives=16),)],
    ids=["projector", "memory"],
)
def test_another_loss_sees_the_same_batches(losses):
    made = [loss() for loss in losses]
    assert same(seen(), seen(*made)) == (True, True)


def test_another_seed_sees_others():
    assert same(seen(), seen(seed=2)) == (False, False)


def test_without_it_the_draws_of_a_memory_change_the_batches():
    memory = CRDLoss("net.stage3", "stage3", negatives=16)
    assert same(seen(same=False), seen(memory, same=False))[0] is False


def test_how_often_is_evaluated_changes_no_batch():
    assert same(seen(), seen(val=0)) == (True, True)


def test_threads_are_those_of_before_after_the_fit():
    before = torch.get_num_threads()
    draws = SameDraws(threads=before + 1)
    draws.setup(None, None, "fit")
    assert torch.get_num_threads() == before + 1
    draws.teardown(None, None, "fit")
    assert torch.get_num_threads() == before


def test_the_count_goes_on_after_a_checkpoint():
    one, two = SameDraws(3), SameDraws(3)
    for _ in range(5):
        one.on_train_batch_end(None, None)
    two.load_state_dict(one.state_dict())
    drawn = []
    for draws in (one, two):
        draws.on_train_batch_end(None, None)
        drawn.append(torch.rand(2))
    assert torch.equal(*drawn)
