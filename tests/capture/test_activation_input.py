"""What the activation at the end of a residual block gets is the sum of its branches, which no module returns."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_kd import EMATeacher, cache
from lightning_kd.capture.call import Call
from lightning_kd.capture.hooks import Capture
from lightning_kd.capture.store import EnoughError
from lightning_kd.losses import ABLoss, KDLoss, OFDLoss
from lightning_kd.losses.features.ofd import ofd_loss
from lightning_kd.teachers import CachedTeacher
from tests import support

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
SUMS = ["<input of stage1.0.relu>", "<input of stage2.1.relu>"]


class Block(nn.Module):
    """As in torchvision: one activation serves the block twice, and may work in place."""

    def __init__(self, taken, given, stride, inplace):
        super().__init__()
        self.conv1 = nn.Conv2d(taken, given, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(given)
        self.relu = nn.ReLU(inplace)
        self.conv2 = nn.Conv2d(given, given, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(given)
        self.shortcut = nn.Sequential()
        if (taken, stride) != (given, 1):
            self.shortcut = nn.Sequential(nn.Conv2d(taken, given, 1, stride, bias=False), nn.BatchNorm2d(given))

    def sum_of(self, x):
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + self.shortcut(x)

    def forward(self, x):
        return self.relu(self.sum_of(x))


class Residual(nn.Module):
    def __init__(self, width, inplace):
        super().__init__()
        self.stage1 = nn.Sequential(Block(1, width, 1, inplace))
        self.stage2 = nn.Sequential(Block(width, 2 * width, 2, inplace), Block(2 * width, 2 * width, 1, inplace))
        self.fc = nn.Linear(2 * width, support.CLASSES)

    def forward(self, x):
        return self.fc(self.stage2(self.stage1(x)).mean((2, 3)))

    def sums(self, x):
        first = self.stage1[0].sum_of(x)
        return first, self.stage2[1].sum_of(self.stage2[0](first.relu()))


def networks(inplace):
    torch.manual_seed(0)
    return Residual(4, inplace), Residual(6, inplace)


def still(student, teacher, losses):
    still = partial(torch.optim.SGD, lr=0.0)
    return support.module(student, teacher=teacher, losses=losses, task_loss=None, optimizer=still)


def fitted(student, teacher, losses, **options):
    module = still(student, teacher, losses)
    trainer = support.trainer(max_epochs=1, log_every_n_steps=1, limit_val_batches=0, **options)
    trainer.fit(module, DataLoader(support.data(8), batch_size=8))
    return module, trainer


@pytest.mark.parametrize("inplace", [False, True])
def test_a_loss_before_the_activation_reads_the_sum(inplace):
    student, teacher = networks(inplace)
    module, trainer = fitted(student, teacher, [OFDLoss()])
    (loss,) = module.run.objective.components
    assert list(loss.student_layers) == list(loss.teacher_layers) == SUMS
    x = support.data(8).tensors[0]
    student.train(), teacher.eval(), loss.train()
    with torch.no_grad():
        parts = [
            ofd_loss(projector(mine), its, torch.full((its.shape[1],), -math.sqrt(2 / math.pi)))
            for projector, mine, its in zip(loss.projectors, student.sums(x), teacher.sums(x), strict=True)
        ]
    expected = parts[0] / 2 + parts[1]
    assert float(trainer.callback_metrics["train/ofd"]) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("inplace", [False, True])
def test_the_gradient_is_that_of_the_sum(inplace):
    student, _ = networks(inplace)
    x = support.data(8).tensors[0]
    capture = Capture(student, SUMS, "student")
    capture.attach()
    with capture.recording() as call:
        student(x)
        capture.check_ran(call)
        capture.copy_changed(call)
    with capture.recording() as call:
        student(x)
        capture.check_unchanged(call, with_output=True)
        total = sum(call.features[name].square().sum() for name in SUMS)
    found = torch.autograd.grad(total, student.stage1[0].conv1.weight)
    capture.detach()
    expected = torch.autograd.grad(sum(one.square().sum() for one in student.sums(x)), student.stage1[0].conv1.weight)
    torch.testing.assert_close(found, expected)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in student.modules())


def test_a_teacher_may_stop_at_the_end_of_the_block():
    _, teacher = networks(inplace=True)
    x = support.data(8).tensors[0]
    capture = Capture(teacher, SUMS[:1], "teacher", with_call=False)
    capture.attach()
    with torch.no_grad(), capture.recording() as call:
        teacher(x)
        capture.copy_changed(call)
    ran = []
    teacher.stage2.register_forward_hook(lambda *_: ran.append(1))
    with torch.no_grad(), capture.recording(layers_only=True) as call, pytest.raises(EnoughError):
        teacher(x)
    with torch.no_grad():
        torch.testing.assert_close(call.features[SUMS[0]], teacher.sums(x)[0])
    assert ran == []


def test_stored_sums_train_as_those_of_the_teacher(tmp_path):
    _, teacher = networks(inplace=True)
    cache.write(teacher, support.data(8), tmp_path, losses=[OFDLoss(SUMS, SUMS)], dtype="float32")
    with torch.no_grad():
        for name, expected in zip(SUMS, teacher.eval().sums(support.data(8).tensors[0]), strict=True):
            guide = CachedTeacher(tmp_path)
            guide.watch([name])
            found = guide.answer(None, Call(args=(support.data(8).tensors[0],))).features[name]
            torch.testing.assert_close(found, expected)


def test_a_checkpoint_goes_on(tmp_path):
    student, teacher = networks(inplace=True)
    module = still(student, teacher, [ABLoss(stage_length=1), KDLoss()])
    data = DataLoader(support.data(8), batch_size=8)
    trainer = support.trainer(max_steps=1, max_epochs=2, limit_val_batches=0)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    again = still(networks(True)[0], teacher, [ABLoss(stage_length=1), KDLoss()])
    support.trainer(max_epochs=2, limit_val_batches=0).fit(again, data, ckpt_path=tmp_path / "one.ckpt")
    assert list(again.run.objective.components[0].student_layers) == SUMS


def test_a_compiled_network_gives_the_same():
    found = []
    for compiled in (False, True):
        student, teacher = networks(inplace=True)
        if compiled:
            student = torch.compile(student, backend="aot_eager")
        found.append(float(fitted(student, teacher, [OFDLoss()])[1].callback_metrics["train/ofd"]))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_function_in_the_place_of_the_activation_leaves_the_longest_branch():
    class Functional(Block):
        def forward(self, x):
            return torch.relu(self.sum_of(x))

    with pytest.warns(UserWarning, match="one branch of each residual block, and not the sum"):
        module, _ = fitted(of_blocks(Functional, 4), of_blocks(Functional, 6), [OFDLoss()])
    assert list(module.run.objective.components[0].student_layers) == ["stage1.0.bn2", "stage2.1.bn2"]


class Scaled(Block):
    """Its branch is scaled before the sum, as by squeeze and excitation."""

    def sum_of(self, x):
        branch = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return branch * branch.mean((2, 3), keepdim=True).sigmoid() + self.shortcut(x)


class Fusing(Block):
    """Has two outputs by one activation, as the blocks of HRNet."""

    def forward(self, x):
        total = self.sum_of(x)
        first = self.relu(total)
        self.relu(total[:, :, ::2, ::2] + 1.0)
        return first


def of_blocks(kind, width):
    net = Residual(width, False)
    for stage in (net.stage1, net.stage2):
        for block in stage:
            block.__class__ = kind
    return net


def test_a_branch_that_is_scaled_makes_no_difference():
    module, _ = fitted(of_blocks(Scaled, 4), of_blocks(Scaled, 6), [OFDLoss()])
    assert list(module.run.objective.components[0].student_layers) == SUMS


def test_an_activation_that_gets_another_sum_later_is_not_read():
    with pytest.warns(UserWarning, match="one branch of each residual block, and not the sum"):
        module, _ = fitted(of_blocks(Fusing, 4), of_blocks(Fusing, 6), [OFDLoss()])
    assert list(module.run.objective.components[0].student_layers) == ["stage1.0.bn2", "stage2.1.bn2"]


class OwnShortcut(Block):
    """Its shortcut's normalisation is a part of its own, with another margin than that of the branch."""

    def __init__(self, taken, given, stride, inplace):
        super().__init__(taken, given, stride, inplace)
        self.sconv, self.sbn = nn.Conv2d(taken, given, 1, stride, bias=False), nn.BatchNorm2d(given)
        self.sbn.bias.data.fill_(-5.0)

    def sum_of(self, x):
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + self.sbn(self.sconv(x))


def of_negative(values):
    below = values.clamp_max(0.0).sum((0, 2, 3)) / (values < 0).sum((0, 2, 3))
    return below.nan_to_num(0.0)


@pytest.mark.parametrize("made", ["shortcut", "of the student"])
def test_a_margin_that_no_norm_tells_is_the_mean_of_the_negative_responses(made, monkeypatch):
    monkeypatch.setattr(f"{__name__}.Block", OwnShortcut if made == "shortcut" else Block)
    student, teacher = networks(inplace=False)
    guide = copy.deepcopy(teacher if made == "shortcut" else student).eval()
    with torch.no_grad():
        sums = guide.sums(support.data(8).tensors[0])
    callbacks = []
    if made == "of the student":
        teacher, callbacks = None, [EMATeacher(decay=0.5)]
    module, _ = fitted(student, teacher, [OFDLoss()], callbacks=callbacks)
    (loss,) = module.run.objective.components
    torch.testing.assert_close(loss.margin, torch.cat([of_negative(one) for one in sums]), rtol=1e-4, atol=1e-6)


class Summing(Block):
    """Returns the sum itself; the activation stands outside."""

    def forward(self, x):
        return self.sum_of(x)


def test_the_sum_is_read_where_the_activation_is_outside_of_the_block():
    def make(width):
        blocks = [Summing(1, width, 1, False), nn.ReLU(), Summing(width, 2 * width, 2, False), nn.ReLU()]
        return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, support.CLASSES))

    module, _ = fitted(make(4), make(6), [OFDLoss()])
    assert list(module.run.objective.components[0].student_layers) == ["<input of 1>", "<input of 3>"]
