"""A task's loss may have weights, as ArcFace has class centres: they train beside the student's, by every way."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_kd import DistillationModule
from lightning_kd.losses import KDLoss
from tests import support

# the outputs are embeddings, of which the task's loss makes scores
pytestmark = pytest.mark.filterwarnings("ignore:val/agreement is left out")


class Centres(nn.Module):
    """Cross entropy of cosines to centres of the classes that train, as ArcFace without its margin."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.centres = nn.Parameter(torch.randn(5, 8, generator=generator))
        self.register_buffer("scale", torch.tensor(4.0))

    def forward(self, embedding, target):
        return F.cross_entropy(self.scale * F.normalize(embedding) @ F.normalize(self.centres).T, target)


def network(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(4, 8)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.5)


def data():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(24, 4, generator=generator), torch.randint(0, 5, (24,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=8)


def module(cls=DistillationModule, **options):
    return cls(network(1), network(2), [KDLoss(temperature=2.0)], task_loss=Centres(), optimizer=sgd, **options)


def by_hand(epochs):
    """Train student and centres in plain torch."""
    student, teacher, task = network(1), network(2), Centres()
    optimizer = sgd([*student.parameters(), *task.parameters()])
    for _ in range(epochs):
        for x, y in data():
            soft = F.kl_div((student(x) / 2).log_softmax(1), (teacher(x) / 2).softmax(1), reduction="batchmean") * 4
            optimizer.zero_grad()
            (task(student(x), y) + soft).backward()
            optimizer.step()
    return student, task


def fit(module, **options):
    return support.fit(module, train=data(), val=data(), **options)


def test_they_train_as_by_hand():
    made = module()
    fit(made, max_epochs=2)
    student, task = by_hand(2)
    torch.testing.assert_close(made.task_loss.state_dict(), task.state_dict())
    torch.testing.assert_close(made.student.state_dict(), student.state_dict())
    assert not torch.equal(task.centres, Centres().centres)


def test_a_resumed_fit_goes_on_with_them(tmp_path):
    first = module()
    fit(first, max_epochs=1).save_checkpoint(tmp_path / "one.ckpt")
    again = module()
    with torch.no_grad():
        again.task_loss.centres.mul_(-1.0)  # a new process draws others, which the checkpoint replaces without a word
    fit(again, max_epochs=2, ckpt_path=tmp_path / "one.ckpt")
    torch.testing.assert_close(again.task_loss.state_dict(), by_hand(2)[1].state_dict())


def test_each_of_several_students_has_its_own():
    students = {"one": network(1), "other": network(4)}
    several = DistillationModule(
        students=students, teacher=network(2), losses=[KDLoss(temperature=2.0)], task_loss=Centres(), optimizer=sgd
    )
    fit(several, max_epochs=2)
    torch.testing.assert_close(several.one.task_loss.state_dict(), by_hand(2)[1].state_dict())
    assert not torch.allclose(several.one.task_loss.centres, several.other.task_loss.centres)


class OwnOptimizer(DistillationModule):
    def configure_optimizers(self):
        return sgd([*self.student.parameters(), *self.losses.parameters()])


def test_an_optimizer_of_the_users_own_that_leaves_them_out_is_refused():
    with pytest.raises(MisconfigurationException, match=r"\['centres'\].*self\.trained_parameters\(\)"):
        fit(module(OwnOptimizer), max_epochs=1)


def test_frozen_ones_may_be_left_out():
    made = module(OwnOptimizer)
    made.task_loss.requires_grad_(False)
    fit(made, max_epochs=1)
    assert torch.equal(made.task_loss.centres, Centres().centres)


class WithParts(DistillationModule):
    """Has a part that trains, the teacher as an attribute, and a metric that holds a network."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.extra = nn.Linear(4, 4)
        self.teacher_too = self.teacher

    def training_step(self, batch, batch_idx):
        return super().training_step((self.extra(batch[0]), batch[1]), batch_idx)


class Distance(torchmetrics.MeanMetric):
    """Measures by a network, as FID does."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(8, 8)

    def update(self, outputs, target):
        super().update(self.net(outputs).mean())


@pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode")  # the teacher, which a user may keep by name
def test_parts_of_a_subclass_train_and_metrics_and_teacher_do_not():
    made = module(WithParts, metrics={"distance": Distance()})
    before = copy.deepcopy(made.state_dict())
    trainer = fit(made, max_epochs=1)
    (group,) = trainer.optimizers[0].param_groups
    names = {id(parameter): name for name, parameter in made.named_parameters()}
    known = [names[id(parameter)] for parameter in group["params"]]
    assert known == ["student.weight", "student.bias", "task_loss.centres", "extra.weight", "extra.bias"]
    assert all(not torch.equal(before[name], dict(made.named_parameters())[name]) for name in known)
