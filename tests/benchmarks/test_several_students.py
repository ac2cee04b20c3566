"""What a step of three students together costs, over the three steps of each alone.

    python -m pytest tests/benchmarks/test_several_students.py

Three ResNet-8 and a ResNet-20 as teacher at 32x32, 64 images a batch, through the Trainer. The ways alternate, and the
fastest quarter of the steps of each counts, in processor time.
"""

import copy
import time
from functools import partial

import torch
from lightning.pytorch import Callback
from torch import nn

from lightning_kd import DistillationModule
from lightning_kd.data.cifar_models import resnet8, resnet20
from lightning_kd.losses import KDLoss
from tests import support

BATCH, STEPS, NAMES = 64, 16, ("one", "two", "three")


class Times(Callback):
    def __init__(self):
        self.steps = []

    def on_train_batch_start(self, *_):
        self.began = time.process_time()

    def on_train_batch_end(self, *_):
        self.steps.append(time.process_time() - self.began)


def a_step(names, teacher, batches):
    nets = {name: resnet8() for name in names}
    which = {"students": nets} if len(nets) > 1 else {"student": nets[names[0]]}
    options = {"task_loss": nn.CrossEntropyLoss(), "optimizer": partial(torch.optim.SGD, lr=0.01)}
    module = DistillationModule(**which, teacher=teacher, losses=[KDLoss()], **copy.deepcopy(options))
    times = Times()
    trainer = support.trainer(max_steps=STEPS, max_epochs=-1, limit_val_batches=0, callbacks=[times])
    trainer.fit(module, support.Batches(batches), support.Batches(batches))
    return sorted(times.steps)[STEPS // 4]


def test_students_together_pay_for_the_teacher_once():
    torch.manual_seed(0)
    batches = [(torch.randn(BATCH, 3, 32, 32), torch.randint(0, 100, (BATCH,))) for _ in range(4)]
    teacher, together, alone = resnet20(), [], []
    for _ in range(3):
        together.append(a_step(NAMES, teacher, batches))
        alone.append(sum(a_step([name], teacher, batches) for name in NAMES))
    ratio = min(together) / min(alone)
    print(f"\nthree students: {min(together) * 1e3:.1f} ms together, {min(alone) * 1e3:.1f} ms one by one: {ratio:.2f}")
    assert ratio < 0.95
