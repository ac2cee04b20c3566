"""What is assigned between two fits acts in the next one, as if the door had been made with it; or it is refused."""

import copy

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torchmetrics.classification import MulticlassF1Score

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.data import Indexed
from lightning_kd.losses import CRDLoss, HintLoss, KDLoss
from tests import support


def net(seed, width=3):
    torch.manual_seed(seed)
    return support.ConvNet(width)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def module(student, teacher, losses, **options):
    return DistillationModule(student, teacher, losses, optimizer=sgd, **options)


def hint():
    return HintLoss(student="features", teacher="features", weight=0.5)


NEW = {
    "losses": lambda: [hint(), KDLoss(2.0)],
    "student": lambda: net(7),
    "teacher": lambda: net(8, 5),
    "task_loss": lambda: nn.CrossEntropyLoss(label_smoothing=0.3),
    "task_weight": lambda: 0.25,
}


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("fits", [0, 1])
def test_the_next_fit_of_a_module_takes_what_was_assigned(name, fits):
    options = {"task_loss": nn.CrossEntropyLoss(), "task_weight": 1.0}
    made = module(net(1), net(2, 5), [KDLoss()], **options)
    for _ in range(fits):
        support.fit(made, max_epochs=1)
    parts = {"student": copy.deepcopy(made.student), "teacher": net(2, 5), "losses": [KDLoss()], **options}
    parts[name] = NEW[name]()
    expected = module(**parts)
    setattr(made, name, NEW[name]())
    for one in (made, expected):
        torch.manual_seed(5)
        support.fit(one, max_epochs=1)
    support.assert_same_weights(made.student, expected.student)
    assert list(made.losses) == list(expected.losses)


def test_a_refit_with_the_losses_that_are_there_goes_on():
    made = module(net(1), net(2, 5), [hint()])
    support.fit(made, max_epochs=1)
    made.losses = made.losses
    support.fit(made, max_epochs=1)
    made.teacher = net(3, 5)
    support.fit(made, max_epochs=1)


def test_what_a_loss_remembers_is_of_the_student_that_it_taught():
    """CRD's banks hold the embeddings of one student; another one begins with banks of its own."""

    def losses():
        return [CRDLoss(negatives=4)]

    def sets():
        return torch.utils.data.DataLoader(Indexed(support.data()), 8)

    made = module(net(1), net(2, 5), losses())
    support.fit(made, train=sets(), max_epochs=1)
    made.student = net(7)
    expected = module(net(7), net(2, 5), losses())
    for one in (made, expected):
        torch.manual_seed(5)
        support.fit(one, train=sets(), max_epochs=1)
    support.assert_same_weights(made, expected)


def callback(teacher, losses):
    return DistillationCallback(teacher, losses)


@pytest.mark.parametrize("name", ["losses", "teacher"])
def test_the_next_fit_of_a_callback_takes_what_was_assigned(name):
    made = callback(net(2, 5), [KDLoss()])
    support.fit(support.UserModule(net(1)), callbacks=[made], max_epochs=1)
    setattr(made, name, NEW[name]())
    expected = callback(**{"teacher": net(2, 5), "losses": [KDLoss()], name: NEW[name]()})
    users = [support.UserModule(net(4)) for _ in range(2)]
    for user, one in zip(users, (made, expected), strict=True):
        torch.manual_seed(5)
        support.fit(user, callbacks=[one], max_epochs=1)
    support.assert_same_weights(*users)


def test_evaluations_take_a_task_loss_and_metrics_that_were_assigned():
    x, y = support.data(16).tensors
    y[::2] = 255
    rows = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)
    made = module(net(1), None, None, task_loss=nn.CrossEntropyLoss(ignore_index=3))
    made.task_loss = nn.CrossEntropyLoss(ignore_index=255)
    made.metrics = [MulticlassF1Score(support.CLASSES, ignore_index=255)]
    trainer = support.fit(made, train=rows, val=rows, max_epochs=1)
    made.student.eval()
    right = (made.student(x).argmax(1) == y)[1::2].float().mean()
    assert trainer.callback_metrics["val/accuracy"] == pytest.approx(right.item())
    made.student = net(3)
    trainer = support.fit(made, train=rows, val=rows, max_epochs=1)
    assert "val/MulticlassF1Score" in trainer.callback_metrics


class Replace(Callback):
    def __init__(self, door, name):
        self.door, self.name = door, name

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        setattr(self.door or pl_module, self.name, NEW[self.name]())


@pytest.mark.parametrize("name", ["losses", "student", "teacher", "task_weight"])
def test_a_replacement_within_a_fit_is_refused(name):
    made = module(net(1), net(2, 5), [KDLoss()])
    with pytest.raises(RuntimeError, match=rf"DistillationModule\.{name} cannot be replaced"):
        support.fit(made, callbacks=[Replace(None, name)], max_epochs=1)
    if name in ("losses", "teacher"):
        door = callback(net(2, 5), [KDLoss()])
        with pytest.raises(RuntimeError, match=rf"DistillationCallback\.{name} cannot be replaced"):
            support.fit(support.UserModule(net(1)), callbacks=[Replace(door, name), door], max_epochs=1)


def test_what_is_no_loss_is_refused_at_once():
    made = module(net(1), net(2, 5), [KDLoss()])
    with pytest.raises(TypeError, match=r"task's own loss as task_loss"):
        made.losses = [nn.MSELoss()]
    with pytest.raises(ValueError, match=r"list of losses is empty"):
        made.losses = []
    with pytest.raises(ValueError, match=r"no layer.*feature"):
        made.losses = [HintLoss(student="feature", teacher="features")]
    with pytest.raises(ValueError, match=r"share"):
        made.teacher = made.student


def test_attributes_of_a_users_own_are_set_as_torch_sets_them():
    own = module(net(1), None, None, task_loss=nn.CrossEntropyLoss())
    own.note, own.layer, own.scale = "first", nn.Linear(2, 2), nn.Parameter(torch.ones(1))
    own.register_buffer("mean", torch.zeros(1))
    own.note = None
    own.layer = own.mean = None
    with pytest.raises(TypeError, match="cannot assign 'str' as parameter 'scale'"):
        own.scale = "wide"
    assert own.note is None
    assert {"layer.weight", "mean"}.isdisjoint(own.state_dict())
    assert "scale" in own.state_dict()


def test_a_task_loss_that_is_a_name_is_told_too():
    own = module(net(1), None, None, task_loss=nn.MSELoss())
    assert own.run.task.of_loss.kind == "regression"
    own.task_loss = "model"
    assert own.run.task.of_loss.kind is None
    own.task_loss = nn.MSELoss()
    assert own.run.task.of_loss.kind == "regression"
