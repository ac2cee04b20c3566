"""Universal logit distillation: the numbers of others' code, and which tokens are paired."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.functional import uld_loss
from lightning_kd.losses import ULDLoss
from lightning_kd.losses.base import StepTensors
from tests.losses.case import random
from tests.losses.golden import TOKENS, Golden, check_golden, golden

NONE = -100


@pytest.mark.parametrize("record", golden("uld", folder=TOKENS), ids=str)
def test_it_equals_the_code_of_others(record: Golden) -> None:
    at_the_token = record.suffix == "__observed"  # the logits at an answer token: here those before the one after it

    def side(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if not at_the_token:
            return logits, labels
        return F.pad(logits, (0, 0, 0, 1)), F.pad(labels, (1, 0), value=NONE)

    def formula(s: list[Tensor], t: list[Tensor], more: dict[str, Tensor]) -> Tensor:
        (student, ours), (teacher, theirs) = side(s[0], more["student_labels"]), side(t[0], more["teacher_labels"])
        return uld_loss(student, teacher, ours, theirs, temperature=record.hyper.get("student_temperature", 1.0))

    check_golden(record, formula)


def test_a_renamed_vocabulary_costs_nothing() -> None:
    student = random(2, 4, 6, seed=1)
    labels = torch.tensor([[NONE, 1, 2, NONE], [NONE, NONE, 0, 3]])
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    wider = F.pad(student[..., order], (0, 3), value=-math.inf)
    assert uld_loss(student, wider, labels, labels).item() <= 1e-15


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_stands_elsewhere_makes_no_difference(poison: float) -> None:
    labels = torch.tensor([[NONE, NONE, 1, 2, NONE]])
    found = []
    for bad in (0.0, poison):
        student, teacher = random(1, 5, 4, seed=1), random(1, 5, 3, seed=2)
        for logits in (student, teacher):
            logits[:, [0, 3, 4]] = bad
        value = uld_loss(student.requires_grad_(), teacher, labels, labels)
        value.backward()
        found.append((value, student.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_no_answer_is_zero_with_a_graph() -> None:
    student = random(2, 3, 4, seed=1).requires_grad_()
    nothing = torch.full((2, 3), NONE)
    value = uld_loss(student, random(2, 3, 5, seed=2), nothing, nothing)
    value.backward()
    assert value.item() == 0.0
    assert student.grad is not None
    assert not student.grad.any()


def padded(rows: list[Tensor], side: str, extra: int, filling: float) -> Tensor:
    size = max(map(len, rows)) + extra
    made = torch.full((len(rows), size, *rows[0].shape[1:]), filling, dtype=rows[0].dtype)
    for row, values in enumerate(rows):
        made[row, : len(values)] = values
        if side == "left":
            made[row] = made[row].roll(size - len(values), 0)
    return made


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("label", [NONE, 0])
@pytest.mark.parametrize("prompt", [0, 1])
@pytest.mark.parametrize(("side", "extra"), [("right", 0), ("right", 3), ("left", 0), ("left", 3)])
def test_padding_is_no_answer_and_predicts_nothing(side: str, extra: int, prompt: int, label: int, own: bool) -> None:
    ours, theirs = (4, 2, 3), (3, 3, 5) if own else (4, 2, 3)
    student = [random(length, 4, seed=row) for row, length in enumerate(ours)]
    teacher = [random(length, 6, seed=9 + row) for row, length in enumerate(theirs)]
    labels = [[torch.arange(length) for length in side] for side in (ours, theirs)]
    for one in (*labels[0], *labels[1]):
        one[:prompt] = NONE
    alone = [uld_loss(s[None], t[None], a[None], b[None]) for s, t, a, b in zip(student, teacher, *labels, strict=True)]
    masks = [padded([torch.ones(length) for length in side_], side, extra, 0.0).bool() for side_ in (ours, theirs)]
    step = StepTensors(
        student_logits=padded(student, side, extra, 50.0),
        teacher_logits=padded(teacher, side, extra, -50.0),
        target=padded(labels[0], side, extra, label),
        teacher_target=padded(labels[1], side, extra, label) if own else None,
        mask=masks[0],
        teacher_mask=masks[1] if own else None,
    )
    assert ULDLoss().evaluate(step).item() == pytest.approx(sum(alone).item() / 3, rel=1e-6)
