"""What a student's own loss is a mean over: its values do not depend on how the data is cut into batches."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from lightning_kd.engine.mean_of_loss import find_mean, mean_of_module
from lightning_kd.losses import HintLoss
from tests import support

CLASSES = 7


def over_labels(scores, labels):
    return F.cross_entropy(scores.flatten(0, 1), labels.flatten())


def over_next_labels(scores, labels):
    return F.cross_entropy(scores[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def over_sentences(scores, labels):
    each = F.cross_entropy(scores.transpose(1, 2), labels, reduction="none")
    return (each.sum(1) / (labels != -100).sum(1).clamp_min(1)).mean()


def over_pairs(scores, labels):  # each sample with the others of its batch
    pooled = scores.mean(1)
    return F.cross_entropy(pooled @ pooled.T, torch.arange(len(pooled)))


KINDS = {"labels": over_labels, "next labels": over_next_labels, "rows": over_sentences, None: over_pairs}


class Student(nn.Module):
    """Computes its own loss, behind a name that says nothing of it."""

    def __init__(self, loss, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(CLASSES, 8)
        self.head = nn.Linear(8, CLASSES)
        self.loss = loss
        self.calls = 0

    def forward(self, input_ids, labels=None):
        self.calls += 1
        scores = self.head(self.embed(input_ids))
        return SimpleNamespace(logits=scores, loss=None if labels is None else self.loss(scores, labels))


def samples(count=8):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(CLASSES, (count, 9), generator=generator)
    lengths = torch.tensor([9, 3, 8, 4, 7, 5, 6, 9])[:count]
    return [
        {"input_ids": one, "labels": torch.where(torch.arange(9) < n, one, -100)}
        for one, n in zip(ids, lengths, strict=True)
    ]


@pytest.mark.parametrize("rows", [8, 2, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_is_found(kind, rows):
    student = Student(KINDS[kind])
    batch = torch.utils.data.default_collate(samples()[:rows])

    def loss_of(given):
        with torch.no_grad():
            return student(**given).loss

    assert find_mean(loss_of, batch, "labels", -100) == kind


@pytest.mark.filterwarnings("ignore:val/.* is left out", "ignore:Trying to infer the `batch_size`")
@pytest.mark.parametrize("kind", ["labels", "next labels", "rows"])
def test_logged_values_do_not_depend_on_the_batches(kind):
    whole = torch.utils.data.default_collate(samples())
    with torch.no_grad():
        right = float(Student(KINDS[kind])(**whole).loss)
    for size in (8, 5, 3, 1):
        module = support.module(
            Student(KINDS[kind]),
            teacher=Student(KINDS[kind], 1),
            losses=[HintLoss("embed", "embed", weight=0.0)],
            task_loss="model",
            optimizer=lambda weights: torch.optim.SGD(weights, lr=0.0),
        )
        trainer = support.trainer(max_epochs=1)
        trainer.fit(module, DataLoader(samples(), size), DataLoader(samples(), size))
        assert float(trainer.callback_metrics["train/task"]) == pytest.approx(right, rel=1e-5)
        assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(right, rel=1e-5)
        trainer.validate(module, DataLoader(samples(), size), verbose=False)
        assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(right, rel=1e-5)


@pytest.mark.filterwarnings("ignore:val/.* is left out")
def test_validation_without_a_fit_finds_it_too():
    whole = torch.utils.data.default_collate(samples())
    with torch.no_grad():
        right = float(Student(over_sentences)(**whole).loss)
    module = support.module(Student(over_sentences), teacher=None, losses=None, task_loss="model")
    (found,) = support.trainer().validate(module, DataLoader(samples(), 3), verbose=False)
    assert found["val/loss"] == pytest.approx(right, rel=1e-5)


class Spans(Student):
    """Two targets by names of their own, as of question answering."""

    def forward(self, input_ids, start=None, end=None):
        scores = self.embed(input_ids).sum(-1)
        loss = None if start is None else (F.cross_entropy(scores, start) + F.cross_entropy(-scores, end)) / 2
        return SimpleNamespace(logits=scores, loss=loss)


@pytest.mark.filterwarnings("ignore:val/.* is left out")
def test_targets_by_other_names_count_as_rows():
    spans = [{"input_ids": one["input_ids"], "start": i % 9, "end": (i * 2) % 9} for i, one in enumerate(samples())]
    whole = torch.utils.data.default_collate(spans)
    with torch.no_grad():
        right = float(Spans(None)(**whole).loss)
    module = support.module(Spans(None), teacher=None, losses=None, task_loss="model")
    (found,) = support.trainer().validate(module, DataLoader(spans, 5), verbose=False)
    assert found["val/loss"] == pytest.approx(right, rel=1e-5)


@pytest.mark.filterwarnings("ignore:val/.* is left out")
def test_it_takes_three_calls_and_leaves_nothing():
    calls = []
    for task_loss in ("model", None):
        student = Student(over_labels)
        module = support.module(
            student, teacher=Student(over_labels, 1), losses=[HintLoss("embed", "embed")], task_loss=task_loss
        )
        torch.manual_seed(5)
        support.trainer(max_epochs=1, limit_val_batches=0).fit(
            module, DataLoader(samples(), 4), DataLoader(samples(), 4)
        )
        calls.append(student.calls)
        assert student.training
    assert calls[0] - calls[1] == 3


class OverLabels(nn.Module):
    """What a refusal of ours names as the remedy of tokens."""

    def forward(self, scores, target):
        return over_labels(scores, target)


class OverPixels(nn.Module):
    """Leaves out pixels of 255, which no attribute says."""

    def forward(self, scores, target):
        return F.cross_entropy(scores, target, ignore_index=255)


class OverSentences(nn.Module):
    def forward(self, scores, target):
        return over_sentences(scores, target)


def tagged():
    return [(one["input_ids"], one["labels"]) for one in samples()]


def painted():
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(8, 3, 4, 4, generator=generator), torch.randint(5, (8, 4, 4), generator=generator)
    y[torch.arange(8).view(8, 1, 1) * 4 // 3 >= torch.arange(16).view(1, 4, 4)] = 255
    return list(zip(x, y, strict=True))


class Scores(Student):
    def forward(self, input_ids):
        return super().forward(input_ids).logits


@pytest.mark.filterwarnings("ignore:val/.* is left out", "ignore:The part.*loss")
@pytest.mark.parametrize(
    ("make", "data", "task_loss"),
    [
        (lambda: Scores(None), tagged, OverLabels()),
        (lambda: Scores(None), tagged, OverSentences()),
        (lambda: support.seeded(lambda: nn.Conv2d(3, 5, 1), 1), painted, OverPixels()),
    ],
    ids=["labels", "sentences", "pixels"],
)
def test_a_module_of_the_users_is_a_mean_over_what_it_is(make, data, task_loss):
    x, y = torch.utils.data.default_collate(data())
    with torch.no_grad():
        right = float(task_loss(make()(x), y))
    for size in (8, 5, 3):
        module = support.module(
            make(),
            teacher=None,
            losses=None,
            task_loss=task_loss,
            optimizer=lambda weights: torch.optim.SGD(weights, lr=0.0),
        )
        trainer = support.trainer(max_epochs=1)
        trainer.fit(module, DataLoader(data(), size), DataLoader(data(), size))
        assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(right, rel=1e-5)
        assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(right, rel=1e-5)
        fresh = support.module(make(), teacher=None, losses=None, task_loss=task_loss)
        (found,) = support.trainer().validate(fresh, DataLoader(data(), size), verbose=False)
        assert found["val/loss"] == pytest.approx(right, rel=1e-5)


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize(("loss", "kind"), [(over_labels, "labels"), (over_sentences, "rows")])
def test_one_or_two_labels_a_sample_tell_it_too(loss, kind, first):
    scores = torch.randn(3, 6, CLASSES, generator=torch.Generator().manual_seed(0))
    target = torch.full((3, 6), -100)
    target[:, 2] = torch.tensor([1, 2, 3])
    target[: first - 1, 4] = 5
    found = find_mean(lambda given: loss(given["x"], given["y"]), {"x": scores, "y": target}, "y", -100)
    assert found == kind


class Shifted(nn.Module):
    def forward(self, scores, target):
        return over_next_labels(scores, target)


class Weighted(nn.Module):
    """Has weights of the classes, so that it is a mean over nothing that is counted."""

    ignore_index = -100

    def forward(self, scores, target):
        return F.cross_entropy(scores.flatten(0, 1), target.flatten(), weight=torch.linspace(0.2, 3.0, CLASSES))


@pytest.mark.filterwarnings("ignore:val/.* is left out")
@pytest.mark.parametrize("task_loss", [Shifted(), Weighted()])
def test_training_and_validation_count_alike(task_loss):
    x, y = torch.utils.data.default_collate(tagged())
    module = support.module(
        Scores(None),
        teacher=None,
        losses=None,
        task_loss=task_loss,
        optimizer=lambda weights: torch.optim.SGD(weights, lr=0.0),
    )
    trainer = support.trainer(max_epochs=1)
    trainer.fit(module, DataLoader(tagged(), 3), DataLoader(tagged(), 3))
    found = trainer.callback_metrics
    assert float(found["train/loss"]) == pytest.approx(float(found["val/loss"]), rel=1e-6)
    if isinstance(task_loss, Shifted):
        with torch.no_grad():
            assert float(found["val/loss"]) == pytest.approx(float(task_loss(Scores(None)(x), y)), rel=1e-5)


def test_a_sum_over_single_labels_is_no_mean():
    scores = torch.randn(3, 6, CLASSES, generator=torch.Generator().manual_seed(0))
    target = torch.full((3, 6), -100)
    target[:, 2] = 1
    total = lambda given: F.cross_entropy(given["x"].flatten(0, 1), given["y"].flatten(), reduction="sum")  # noqa: E731
    assert find_mean(total, {"x": scores, "y": target}, "y", -100) is None


class Counts(OverLabels):
    """Remembers its calls."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, scores, target):
        self.calls += 1
        return super().forward(scores, target)


def test_the_look_leaves_nothing_in_a_module_of_the_users():
    x, y = torch.utils.data.default_collate(tagged())
    loss = Counts()
    assert mean_of_module(loss, Scores(None)(x), y).mean == "labels"
    assert loss.calls == 0
