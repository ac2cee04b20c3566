"""Three lines from two networks and data to a trained student with its numbers."""

import random
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from lightning_kd import DistillationModule, DistillationResult, Doctor, distill
from lightning_kd.data import DigitsConvNet, DigitsDataModule
from lightning_kd.losses import EmbeddingLoss, HintLoss, KDLoss, MultiLabelKDLoss, RegressionKDLoss
from lightning_kd.simple.defaults import choose
from lightning_kd.teachers import from_checkpoint
from tests import support

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}

# their teachers are small networks that were never trained, of which the doctor warns
pytestmark = pytest.mark.filterwarnings("ignore:None of the teacher's")


def quick(student=None, teacher=None, train=None, val=None, **options):
    train = support.data() if train is None else train
    return distill(
        student or support.student(), teacher or support.teacher(), train, val, **(QUIET | {"max_epochs": 2} | options)
    )


def test_the_student_is_that_of_the_same_fit_by_hand():
    result = quick(val=support.data(), seed=3, batch_size=8)
    net = support.student()
    module = DistillationModule(
        net,
        support.teacher(),
        [KDLoss(temperature=4.0, weight=0.9)],
        task_loss=nn.CrossEntropyLoss(),
        task_weight=0.1,
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
        lr_scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=2),
    )
    trainer = support.trainer(max_epochs=2, num_sanity_val_steps=2)
    torch.manual_seed(3)
    rows = DataLoader(support.data(), batch_size=8)
    trainer.fit(module, DataLoader(support.data(), batch_size=8, shuffle=True), rows)
    support.assert_same_weights(result.student, net)
    x, y = support.data().tensors
    with torch.no_grad():
        ours, theirs = net.eval()(x).argmax(1), support.teacher().eval()(x).argmax(1)
    expected = {"accuracy": ours == y, "teacher_accuracy": theirs == y, "agreement": ours == theirs}
    assert result.metrics == pytest.approx({name: hits.float().mean().item() for name, hits in expected.items()})


def test_it_teaches_the_digits_in_three_lines():
    teacher = from_checkpoint(DigitsConvNet(width=32, depth=2), "examples/digits/teacher.safetensors")
    torch.manual_seed(0)
    result = distill(DigitsConvNet(width=6), teacher, DigitsDataModule(batch_size=16), max_epochs=6, **QUIET)
    assert result.metrics["teacher_accuracy"] > 0.98
    assert result.metrics["accuracy"] > 0.5
    assert "agreement" in str(result)


def test_the_same_seed_gives_the_same_student_and_another_one_another():
    one, same, other = (quick(seed=seed, batch_size=8).student for seed in (1, 1, 2))
    support.assert_same_weights(one, same)
    assert not torch.equal(one.head.weight, other.head.weight)


def test_teacher_and_random_states_are_as_before():
    guide = support.teacher().train()
    guide.features[0].eval()
    guide.head.weight.requires_grad_(False)
    modes = {name: part.training for name, part in guide.named_modules()}
    trains = {name: p.requires_grad for name, p in guide.named_parameters()}
    before = support.snapshot(guide)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    states = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()]
    student = support.student()
    result = quick(student, guide, val=support.data())
    assert result.student is student
    assert {name: part.training for name, part in guide.named_modules()} == modes
    assert {name: p.requires_grad for name, p in guide.named_parameters()} == trains
    support.assert_unchanged(guide, before)
    assert not student.training
    assert all(p.requires_grad for p in student.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for one in (guide, student) for part in one.modules())
    assert [random.getstate(), np.random.get_state()[1].tolist()] == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])


class Stream(IterableDataset):
    def __init__(self):
        self.read = 0

    def __iter__(self):
        for row in support.data():
            self.read += 1
            yield row


X, Y = support.data().tensors
DATA = {
    "data set": support.data,
    "tensors": lambda: (X, Y),
    "loader": lambda: DataLoader(support.data(), batch_size=64, shuffle=True),
}


@pytest.mark.parametrize("kind", DATA)
def test_every_form_of_data_gives_the_same_student(kind):
    support.assert_same_weights(quick(train=DATA[kind]()).student, quick(train=support.data()).student)


def test_without_labels_the_teacher_alone_teaches():
    result = quick(train=X, val=X, batch_size=8)
    assert list(result.metrics) == ["agreement"]
    assert [type(loss) for loss in result.module.run.objective.components] == [KDLoss]
    assert result.module.task_loss is None
    labelled = quick(train=support.data(), val=X, task_loss=None, batch_size=8)
    support.assert_same_weights(labelled.student, result.student)


def test_a_stream_needs_losses_and_is_read_once():
    with pytest.raises(ValueError, match="what the task is cannot be told"):
        quick(train=Stream())
    rows = Stream()
    quick(train=rows, losses=[KDLoss()], task_loss=nn.CrossEntropyLoss(), max_epochs=1)
    assert rows.read == 24


CHOSEN = {
    "classes": (torch.zeros(2, 3), torch.tensor([0, 2]), KDLoss, nn.CrossEntropyLoss, 0.1),
    "pixels": (torch.zeros(2, 3, 4, 4), torch.ones(2, 4, 4, dtype=torch.long), KDLoss, nn.CrossEntropyLoss, 0.1),
    "soft targets": (torch.zeros(2, 3), torch.full((2, 3), 1 / 3), KDLoss, nn.CrossEntropyLoss, 0.1),
    "values": (torch.zeros(2, 1), torch.tensor([[0.3], [2.0]]), RegressionKDLoss, nn.MSELoss, 0.5),
}


@pytest.mark.parametrize("kind", CHOSEN)
def test_losses_are_chosen_by_the_task(kind):
    logits, target, loss, task, weight = CHOSEN[kind]
    found = choose(None, "auto", None, logits, target)
    assert [type(one) for one in found.losses] == [loss]
    assert (type(found.task_loss), found.task_weight) == (task, weight)


def test_losses_are_chosen_by_the_task_s_loss():
    for task, loss in ((nn.BCEWithLogitsLoss(), MultiLabelKDLoss), (nn.L1Loss(), RegressionKDLoss)):
        found = choose(None, task, None, torch.zeros(2, 3), torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]))
        assert [type(one) for one in found.losses] == [loss]
        assert found.task_loss is task
    found = choose(None, nn.CosineEmbeddingLoss(), None, torch.zeros(2, 3), torch.zeros(2))
    assert [type(one) for one in found.losses] == [EmbeddingLoss]


@pytest.mark.parametrize(
    ("logits", "target"),
    [
        (torch.zeros(2, 3), torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])),  # labels, or values
        (torch.zeros(2, 3), torch.tensor([0, 7])),
        (torch.zeros(2, 3), ["a", "b"]),
        (None, torch.tensor([0, 1])),
    ],
)
def test_what_may_be_several_things_is_asked_for(logits, target):
    with pytest.raises(ValueError, match=r"what the task is cannot be told.*Give task_loss="):
        choose(None, "auto", None, logits, target)


def test_losses_of_ones_own_are_used_and_the_task_counts_in_full():
    result = quick(losses=[HintLoss("features", "features", weight=2.0)])
    assert [type(loss) for loss in result.module.run.objective.components] == [HintLoss]
    assert (type(result.module.task_loss), result.module.task_weight) == (nn.CrossEntropyLoss, 1.0)


def test_an_optimizer_of_ones_own_keeps_its_rate():
    result = quick(optimizer=partial(torch.optim.SGD, lr=0.25))
    optimizer = result.module.trainer.optimizers[0]
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["lr"] == 0.25


class Tagged(support.ConvNet):
    """Its name would be markup on a page."""


Tagged.__name__ = "<b>Net</b>"


def test_the_report_tells_what_was_chosen_and_what_came_of_it(tmp_path):
    result = quick(support.seeded(partial(Tagged, 3), 3), val=support.data())
    for ending in ("html", "md", "txt"):
        result.report(tmp_path / f"report.{ending}")
        text = (tmp_path / f"report.{ending}").read_text()
        assert "Losses: KDLoss(weight=0.9)." in text
        assert "teacher" in text
        assert "learning rate of 0.001" in text
    page = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;Net&lt;/b&gt;" in page
    assert "<b>" not in page
    assert "://" not in page
    with pytest.raises(ValueError, match=r"ends in none of .html, .md and .txt"):
        result.report(tmp_path / "report.pdf")


def test_the_student_is_exported_alone(tmp_path):
    result = quick()
    result.export(tmp_path / "student.safetensors")
    support.assert_same_weights(from_checkpoint(support.student(), tmp_path / "student.safetensors"), result.student)
    assert isinstance(result, DistillationResult)
    assert result.metrics == {}


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"student": "resnet18"}, ValueError, r"'resnet18' names no network. Expected such as 'timm:resnet18'"),
        ({"teacher": 3}, TypeError, r"expected networks \(torch.nn.Module\) or their names, .* got a int: 3"),
        ({"train": "folder"}, FileNotFoundError, "There is no folder 'folder'"),
        ({"train": list(support.data())}, TypeError, "a list of samples or of batches, which cannot be told apart"),
        ({"train": 3}, TypeError, "train is a int; give a data set"),
        ({"train": (X, Y[:3])}, ValueError, r"tensors of \[24, 3\] rows"),
        ({"train": TensorDataset(X[:0], Y[:0])}, ValueError, "train has no samples"),
        ({"train": DigitsDataModule(), "val": (X, Y)}, ValueError, "leave out val"),
    ],
)
def test_what_cannot_be_is_refused(options, kind, words):
    with pytest.raises(kind, match=words):
        quick(**options)


def test_an_option_that_there_is_not_is_refused_with_the_nearest():
    x = torch.randn(8, 4)
    with pytest.raises(TypeError, match=r"has an option 'max_epoch'\. Did you mean 'max_epochs'\?"):
        distill(nn.Linear(4, 3), nn.Linear(4, 3), x, max_epoch=1)


def test_a_teacher_that_has_nothing_to_teach_is_warned_of():
    x, y = torch.randn(64, 1, 8, 8), torch.arange(64) % 10
    with pytest.warns(UserWarning, match="has seen a batch, so it was never trained"):
        quick(DigitsConvNet(width=2), DigitsConvNet(width=3), (x, y))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quick(DigitsConvNet(width=2), DigitsConvNet(width=3), (x, y), callbacks=Doctor(batches=0))
    assert not [one for one in caught if "has seen a batch" in str(one.message)]


@pytest.mark.parametrize("held_out", [False, True])
def test_data_that_can_be_passed_over_once_is_refused(held_out):
    x, y = support.data(8).tensors
    once = ((x[i : i + 4], y[i : i + 4]) for i in (0, 4))
    train, val = ((x, y), once) if held_out else (once, None)
    name = "val" if held_out else "train"
    with pytest.raises(TypeError, match=f"{name} is a generator, which can be passed over once"):
        distill(support.student(), support.teacher(), train, val, max_epochs=2)


def named_classes(*names):
    dataset = support.data(8)
    dataset.classes = list(names)
    return dataset


def test_two_data_sets_that_number_a_class_otherwise_are_refused():
    train, val = named_classes("ant", "bee", "cat", "dog"), named_classes("bee", "cat", "dog")
    words = "the class 'bee' has the number 1 in train and 0 in val"
    with pytest.raises(ValueError, match=words):
        distill(support.student(), support.teacher(), train, Subset(val, [0, 1]), max_epochs=1)
