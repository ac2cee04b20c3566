"""Fit styles of modules on two processes, with the callback and by hand, and write the weights; a program.

python -m tests.programs.distributed_styles FOLDER STYLE...
python -m tests.programs.distributed_styles FOLDER "no loss on one process"
"""

import sys
from functools import partial

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.optim import lr_scheduler

from lightning_kd import DistillationCallback
from tests import support
from tests.doors.test_callback_optimizers import SGD, ByHand, OfASubmodule, callback
from tests.doors.test_callback_styles import fit, kd
from tests.support import processes, styles


class NoLossOnOneProcess(support.UserModule):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return None if self.global_rank == 1 and batch_idx == 1 else loss


def made(name):
    """Return a module with its callbacks, the module by hand, and the data."""
    if name == "no loss on one process":
        module = NoLossOnOneProcess(support.student())
        return module, [DistillationCallback(support.teacher(), [kd()])], None, None
    if name == "optimizer of a submodule":
        schedule = partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=6)
        return OfASubmodule(SGD, schedule), [callback()], ByHand(SGD, schedule), None
    style = styles.BY_NAME[name]
    return style.alone(), [DistillationCallback(style.guide(), [kd()], **style.options)], style.by_hand(), style.data


def fit_on_two(module, data, **options):
    return fit(module, data, strategy=DDPStrategy(process_group_backend="gloo"), devices=2, max_epochs=2, **options)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        distilled, callbacks, by_hand, data = made(name)
        trainer = fit_on_two(distilled, data, callbacks=callbacks)
        fit_on_two(by_hand, data)
        weights = {key: [value, by_hand.state_dict()[key]] for key, value in distilled.state_dict().items()}
        torch.save(weights, f"{sys.argv[1]}/{name}.{trainer.global_rank}")
    processes.leave_group()
