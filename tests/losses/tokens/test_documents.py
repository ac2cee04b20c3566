"""Rows of several documents: tokens of one document are not related to those of another."""

import pytest
import torch
from torch import Tensor, nn

from lightning_kd import DistillationModule
from lightning_kd.losses import AttentionMatrixLoss, QKVRelationLoss
from lightning_kd.losses.base import StepTensors
from tests import support
from tests.losses.case import random

DOCUMENTS = (2, 3, 1, 4)
ROWS = ((0, 1, 2), (3,))
T = 7  # the first row has one token of padding, the second three
NAMES = ["q", "k", "v"]


def qkv(reduction: str) -> QKVRelationLoss:
    relations = {"QQ": 1.0, "QK": 0.5}
    return QKVRelationLoss(NAMES, NAMES, relation_heads=2, relations=relations, reduction=reduction)


def packed(documents: list[Tensor], axes: tuple[int, ...]) -> Tensor:
    """Put documents into rows; what relates two of them, and padding, is 9."""
    shape = list(documents[0].shape)
    for axis in axes:
        shape[axis] = T
    made = torch.full((len(ROWS), *shape), 9.0, dtype=documents[0].dtype)
    for row, inside in enumerate(ROWS):
        start = 0
        for number in inside:
            place = [slice(None)] * len(shape)
            for axis in axes:
                place[axis] = slice(start, start + DOCUMENTS[number])
            made[(row, *place)] = documents[number]
            start += DOCUMENTS[number]
    return made


POSITIONS = torch.tensor([[0, 1, 0, 1, 2, 0, 1], [0, 1, 2, 3, 4, 5, 6]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0, 0]]).bool()


@pytest.mark.parametrize("reduction", ["tokens", "sentences"])
def test_relations_are_those_of_the_documents_alone(reduction: str) -> None:
    sides = [
        {
            name: [random(n, 4, seed=100 * k + 10 * i + j) for j, n in enumerate(DOCUMENTS)]
            for i, name in enumerate(NAMES)
        }
        for k in (1, 2)
    ]
    alone = [
        qkv(reduction)
        .evaluate(StepTensors(student_features=pick(sides[0], i), teacher_features=pick(sides[1], i)))
        .item()
        for i in range(len(DOCUMENTS))
    ]
    student, teacher = ({name: packed(of, (0,)) for name, of in side.items()} for side in sides)
    step = StepTensors(student_features=student, teacher_features=teacher, mask=MASK, position_ids=POSITIONS)
    loss = qkv(reduction)
    weights = DOCUMENTS if reduction == "tokens" else (1,) * len(DOCUMENTS)
    by_hand = sum(w * one for w, one in zip(weights, alone, strict=True)) / sum(weights)
    assert loss.evaluate(step).item() == pytest.approx(by_hand, rel=1e-10)
    assert int(loss.counted) == sum(weights)


def pick(side: dict[str, list[Tensor]], number: int) -> dict[str, Tensor]:
    return {name: of[number][None] for name, of in side.items()}


@pytest.mark.parametrize("kind", ["scores", "probabilities", "scores_kl", "probabilities_kl"])
def test_attention_is_that_of_the_documents_alone(kind: str) -> None:
    def of(seed: int) -> list[Tensor]:
        scores = [random(2, n, n, seed=seed + n) for n in DOCUMENTS]
        return [one.softmax(-1) for one in scores] if kind.startswith("prob") else scores

    def loss() -> AttentionMatrixLoss:
        return AttentionMatrixLoss("a", "a", kind=kind)

    student, teacher = of(10), of(50)
    alone = [
        loss().evaluate(StepTensors(student_features={"a": s[None]}, teacher_features={"a": t[None]})).item()
        for s, t in zip(student, teacher, strict=True)
    ]
    weights = [n if kind.endswith("_kl") else n * n for n in DOCUMENTS]
    features = [{"a": packed(one, (1, 2))} for one in (student, teacher)]
    step = StepTensors(student_features=features[0], teacher_features=features[1], mask=MASK, position_ids=POSITIONS)
    by_hand = sum(w * one for w, one in zip(weights, alone, strict=True)) / sum(weights)
    assert loss().evaluate(step).item() == pytest.approx(by_hand, rel=1e-10)


@pytest.mark.parametrize("positions", [torch.arange(T).expand(2, T), torch.tensor([[0, 0, 0, 1, 2, 3, 4]] * 2), None])
def test_rows_of_one_document_stay_bit_for_bit(positions: Tensor | None) -> None:
    mask = torch.ones(2, T).bool()
    mask[:, :2] = False  # their positions say nothing
    features = [{name: random(2, T, 4, seed=seed) for name in NAMES} for seed in (1, 2)]
    step = StepTensors(student_features=features[0], teacher_features=features[1], mask=mask)
    told = StepTensors(student_features=features[0], teacher_features=features[1], mask=mask, position_ids=positions)
    assert torch.equal(qkv("tokens").evaluate(told), qkv("tokens").evaluate(step))


class Projections(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)
        self.q, self.k, self.v = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        x = self.embed(input_ids)
        return self.head(self.q(x) + self.k(x) + self.v(x))


def test_the_positions_are_those_that_the_student_is_called_with() -> None:
    ids = torch.tensor([[3, 4, 5, 6, 7]])

    def value(batch: dict[str, Tensor]) -> float:
        student, teacher = support.seeded(Projections, 1), support.seeded(Projections, 2)
        module = DistillationModule(student, teacher, [qkv("tokens")])
        train = support.batches(batch)
        return float(support.fit(module, train=train, max_epochs=1, limit_val_batches=0).callback_metrics["train/loss"])

    parts = [value({"input_ids": ids[:, :2]}), value({"input_ids": ids[:, 2:]})]
    found = value({"input_ids": ids, "position_ids": torch.tensor([[0, 1, 0, 1, 2]])})
    assert found == pytest.approx((2 * parts[0] + 3 * parts[1]) / 5, rel=1e-5)
    assert value({"input_ids": ids}) != pytest.approx(found, rel=1e-2)
