"""Vocabularies of two sizes: the divergence is over what both have, the cross entropy over all that the student has."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_kd.losses import TokenKDLoss
from lightning_kd.losses.tokens.heads import Head, Tail
from tests.losses.case import random

B, T, H = 2, 5, 3
LABELS = torch.tensor([[0, 6, -100, 3, 1], [2, -100, 5, 6, 4]])


def by_hand(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Token by token."""
    common, total = min(student.shape[-1], teacher.shape[-1]), 0.0
    counting = (LABELS != -100).nonzero().tolist()
    for row, place in counting:
        s, t = student[row, place], teacher[row, place, :common]
        log_p, log_q = (t / temperature).log_softmax(-1), (s[:common] / temperature).log_softmax(-1)
        total = total + (log_p.exp() * (log_p - log_q)).sum() - 0.5 * s.log_softmax(-1)[LABELS[row, place]]
    return total / len(counting)


def loss(temperature: float, **options: object) -> TokenKDLoss:
    return TokenKDLoss(shift=False, vocab="truncate", cross_entropy=0.5, temperature=temperature, **options)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("sizes", [(7, 5), (7, 7), (7, 9)])
def test_whole_logits(sizes: tuple[int, int], temperature: float) -> None:
    student = random(B, T, sizes[0], seed=1).requires_grad_()
    teacher = random(B, T, sizes[1], seed=2)
    value = loss(temperature)(student, teacher, target=LABELS)
    expected = by_hand(student, teacher, temperature)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(*(torch.autograd.grad(one, student)[0] for one in (value, expected)))


@pytest.mark.parametrize("memory", ["save", "recompute"])
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("sizes", [(7, 5), (7, 9)])
def test_fused(sizes: tuple[int, int], temperature: float, plain: bool, memory: str) -> None:
    hidden, its = random(B, T, H, seed=1).requires_grad_(), random(B, T, H, seed=2)
    linear, other = (nn.Linear(H, size, dtype=torch.float64) for size in sizes)
    with torch.no_grad():
        for seed, parameter in enumerate((*linear.parameters(), *other.parameters())):
            parameter.copy_(random(*parameter.shape, seed=10 + seed))
    tail = Tail(scale=0.5, cap=2.0, bias=random(sizes[0], seed=5))
    heads = Head(linear if plain else nn.Sequential(linear), tail), Head(other if plain else nn.Sequential(other))
    value = loss(temperature, memory=memory).of_hidden(hidden, its, heads, LABELS, None)
    expected = by_hand(2.0 * torch.tanh(0.5 * linear(hidden) / 2.0) + tail.bias, other(its).detach(), temperature)
    torch.testing.assert_close(value, expected)
    inputs = (hidden, linear.weight, linear.bias)
    for one, another in zip(torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(one, another)


def test_the_cross_entropy_is_that_of_torch() -> None:
    student, teacher = random(B, T, 7, seed=1), random(B, T, 5, seed=2)
    one = loss(1.0)
    one(student, teacher, target=LABELS)
    expected = F.cross_entropy(student.flatten(0, 1), LABELS.flatten())
    torch.testing.assert_close(one.details["cross_entropy"], expected)
