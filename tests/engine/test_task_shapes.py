"""Torch's own losses never broadcast a target over the outputs."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_kd import DistillationModule
from lightning_kd.engine.task import task_term
from lightning_kd.losses import TokenKDLoss
from tests import support

LOSSES: list[nn.Module] = [
    nn.MSELoss(),
    nn.L1Loss(),
    nn.HuberLoss(),
    nn.SmoothL1Loss(),
    nn.PoissonNLLLoss(),
    nn.BCEWithLogitsLoss(),
    nn.SoftMarginLoss(),
]
NAMES = [type(loss).__name__ for loss in LOSSES]


def _values(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("loss", LOSSES, ids=NAMES)
def test_a_column_and_a_row_are_compared_one_to_one(loss: nn.Module) -> None:
    outputs, target = _values(6, 1) - 0.5, _values(6)
    expected = torch.stack([loss(outputs[i, 0], target[i]) for i in range(6)]).mean()
    torch.testing.assert_close(task_term(loss, outputs, target), expected)
    torch.testing.assert_close(task_term(loss, outputs[:, 0], target[:, None]), expected)
    assert torch.equal(task_term(loss, outputs, target[:, None]), loss(outputs, target[:, None]))


def test_chances_too() -> None:
    outputs, target = _values(6, 1), torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0, 1.0])
    assert torch.equal(task_term(nn.BCELoss(), outputs, target), nn.BCELoss()(outputs, target[:, None]))


@pytest.mark.parametrize("loss", LOSSES[:5], ids=NAMES[:5])
@pytest.mark.parametrize(("of_outputs", "of_target"), [((6, 3), (6, 1)), ((3, 3), (3,)), ((6, 1, 4), (6, 4))])
def test_other_shapes_that_would_broadcast_are_refused(
    loss: nn.Module, of_outputs: tuple[int, ...], of_target: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=type(loss).__name__) as told:
        task_term(loss, _values(*of_outputs), _values(*of_target))
    assert str(of_outputs) in str(told.value)
    assert str(of_target) in str(told.value)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.NLLLoss()], ids=["CrossEntropyLoss", "NLLLoss"])
def test_logits_of_tokens_are_refused_with_the_remedy(loss: nn.Module) -> None:
    logits, labels = _values(4, 6, 50), torch.zeros(4, 6, dtype=torch.long)
    with pytest.raises(ValueError, match=r"\(4, 6, 50\).*shape \(4, 6\).*cross_entropy=1.0.*task_loss='model'"):
        task_term(loss, logits, labels)
    assert torch.equal(task_term(loss, logits.mT, labels), loss(logits.mT, labels))


def test_a_loss_of_the_users_own_gets_what_the_batch_holds() -> None:
    class Own(nn.MSELoss):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:  # noqa: A002
            assert target.shape == (6,)
            return super().forward(input[:, 0], target)

    outputs, target = _values(6, 1), _values(6)
    assert torch.equal(task_term(Own(), outputs, target), nn.MSELoss()(outputs[:, 0], target))


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.NLLLoss()], ids=["CrossEntropyLoss", "NLLLoss"])
@pytest.mark.parametrize("narrow", [torch.int64, torch.int32])
def test_class_ids_lose_their_axis_of_one(loss: nn.Module, narrow: torch.dtype) -> None:
    for axes in ((), (2, 2)):
        outputs = _values(4, 3, *axes)
        ids = torch.randint(0, 3, (4, 1, *axes), generator=torch.Generator().manual_seed(1))
        assert torch.equal(task_term(loss, outputs, ids.to(narrow)), loss(outputs, ids[:, 0]))


class Tagger(nn.Module):
    """Scores (B, T, V) of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11)

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.head(self.embed(ids))
        return scores


class Flat(nn.CrossEntropyLoss):
    """What the refusal names as a remedy."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return super().forward(logits.flatten(0, 1), target.flatten())


def fit_tagger(task_loss: nn.Module | None, **options: float) -> DistillationModule:
    ids = torch.randint(0, 11, (4, 5), generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(ids, ids), 2)
    module = DistillationModule(Tagger(), Tagger(), [TokenKDLoss(shift=False, **options)], task_loss=task_loss)
    support.fit(module, train=loader, val=loader, max_epochs=1)
    return module


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.NLLLoss(), nn.CrossEntropyLoss(ignore_index=0)])
def test_a_loss_that_reads_classes_on_axis_1_is_refused_for_tokens_at_set_up_with_the_remedy(loss: nn.Module) -> None:
    name = type(loss).__name__
    with pytest.raises(
        ValueError, match=rf"task_loss {name} reads the classes on axis 1, .*\(2, 5, 11\).*\(2, 5\)"
    ) as e:
        fit_tagger(loss)
    assert "TokenKDLoss(cross_entropy=1.0)" in str(e.value)
    assert "task_loss='model'" in str(e.value)
    assert "logits.flatten(0, 1)" in str(e.value)
    assert any(entry.name == "prepare" for entry in e.traceback)
    with pytest.raises(ValueError, match="axis 1"):
        task_term(loss, torch.zeros(2, 5, 11), torch.zeros(2, 5, dtype=torch.long))


class TurnedTagger(Tagger):
    """The same scores with the classes on axis 1."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).transpose(1, 2)


def test_as_many_tokens_as_classes_are_refused_where_the_network_has_the_classes_last() -> None:
    ids = torch.randint(0, 11, (4, 11), generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(ids, ids), 2)
    still = partial(torch.optim.SGD, lr=0.0)

    def fit(student: nn.Module) -> float:
        module = DistillationModule(student, None, None, task_loss=nn.CrossEntropyLoss(), optimizer=still)
        support.fit(module, train=loader, val=loader, max_epochs=1)
        return float(module.trainer.callback_metrics["val/loss"])

    with pytest.raises(ValueError, match=r"reads the classes on axis 1, .*\(2, 11, 11\).*\(2, 11\)"):
        fit(Tagger())
    student = TurnedTagger()
    with torch.no_grad():
        right = nn.functional.cross_entropy(student.head(student.embed(ids)).flatten(0, 1), ids.flatten())
    assert fit(student) == pytest.approx(float(right), rel=1e-5)


def test_each_remedy_works_and_axis_1_stays_the_classes() -> None:
    fit_tagger(Flat())
    fit_tagger(None, cross_entropy=1.0)
    scores, target = torch.randn(2, 11, 5), torch.randint(0, 11, (2, 5))
    assert torch.equal(task_term(nn.CrossEntropyLoss(), scores, target), nn.CrossEntropyLoss()(scores, target))


def test_one_hot_rows_of_whole_numbers_are_refused_with_the_remedy() -> None:
    target = nn.functional.one_hot(torch.tensor([0, 2, 1]), 3)
    with pytest.raises(ValueError, match=r"its type is int64.*target\.argmax\(1\)"):
        task_term(nn.CrossEntropyLoss(), _values(3, 3), target)
    right = nn.CrossEntropyLoss()(_values(3, 3), torch.tensor([0, 2, 1]))
    torch.testing.assert_close(task_term(nn.CrossEntropyLoss(), _values(3, 3), target.float()), right)


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), nn.BCELoss()])
def test_whole_numbers_are_no_probabilities(loss: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"compares probabilities, .* int64\. Give target\.float\(\)"):
        task_term(loss, torch.full((3, 2), 0.5), torch.ones(3, 2, dtype=torch.long))
