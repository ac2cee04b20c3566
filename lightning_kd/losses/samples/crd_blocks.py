"""Value and gradient of CRD's comparisons, computed block by block, so that no table of vectors is ever in memory."""

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.losses.checks import check_same_shape
from lightning_kd.losses.tensors import check_differentiated_once

EPS = 1e-7
PRODUCT_RATIO = 16
"""Up to so many rows of the bank for each negative, one product with the whole bank is faster than picking rows."""


def one_side(
    anchor: Tensor, bank: Tensor, contrast_index: Tensor, log_normalizer: Tensor, temperature: float
) -> Tensor:
    """Return one of the two sums of ``crd_loss``: the embeddings of one network against the bank of the other.

    Args:
        anchor: Embeddings of one network, shape (B, d), in at least float32.
        bank: Remembered embeddings of the other network, shape (n, d).
        contrast_index: Rows of the bank to compare each embedding with, shape (B, K + 1), the own row in column 0.
        log_normalizer: Logarithm of the number that divides the exponentials.
        temperature: Divides the similarities, > 0.
    """
    wanted = torch.is_grad_enabled() and anchor.requires_grad
    with torch.no_grad():
        value, gradient = _value_and_gradient(
            anchor.detach(), bank, contrast_index, log_normalizer, temperature, wanted
        )
    if not wanted:
        return value
    return with_gradient(anchor, value, gradient)


def log_sums(
    student: Tensor,
    teacher: Tensor,
    student_bank: Tensor,
    teacher_bank: Tensor,
    contrast_index: Tensor,
    temperature: float,
) -> Tensor:
    """Return log sum exp of each sample's scores, (B, 2): of the student with the teacher's bank, and vice versa."""
    sides = []
    with torch.no_grad():
        for anchor, bank in ((student, teacher_bank), (teacher, student_bank)):
            scores = anchor.new_empty(contrast_index.shape)
            whole = by_product(bank, contrast_index)
            for rows, columns in blocks(anchor, bank, contrast_index):
                scores[rows, columns] = scores_of(anchor[rows], bank, contrast_index[rows, columns], whole)[0]
            sides.append((scores / temperature).logsumexp(dim=1))
        return torch.stack(sides, dim=1)


def normalizers_of(log_sums: Tensor, num_samples: int, width: int) -> Tensor:
    """Return the logarithms of the two normalisers: the mean exponential of a batch, times the rows of a bank.

    Args:
        log_sums: What :func:`log_sums` returns.
        num_samples: Rows of a bank.
        width: Rows that each sample is compared with.
    """
    return log_sums.logsumexp(dim=0) + math.log(num_samples / (len(log_sums) * width))


def with_gradient(anchor: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    """Return a value whose gradient with respect to the anchor was computed along with it."""
    result: Tensor = cast(Any, _WithGradient).apply(anchor, value, gradient)
    return result


class _WithGradient(torch.autograd.Function):
    """Gives a value the gradient that was computed along with it."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        check_differentiated_once("crd_loss")
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None, None


def _value_and_gradient(
    anchor: Tensor, bank: Tensor, contrast_index: Tensor, log_normalizer: Tensor, temperature: float, wanted: bool
) -> tuple[Tensor, Tensor]:
    negatives = contrast_index.shape[1] - 1
    share = negatives / len(bank)
    # With u = log P - log(c + eps), a positive costs softplus(-u), a negative softplus(u) + log((c + eps) / c).
    offset = log_normalizer.to(anchor.dtype) + math.log(share + EPS)
    whole = by_product(bank, contrast_index)
    total, gradient = anchor.new_zeros(()), torch.zeros_like(anchor)
    for rows, columns in blocks(anchor, bank, contrast_index):
        index = contrast_index[rows, columns]
        scores, kept = scores_of(anchor[rows], bank, index, whole)
        scores.div_(temperature).sub_(offset)
        if columns.start == 0:
            scores[:, 0].neg_()
        total += F.softplus(scores, threshold=40.0).sum()
        if wanted:
            slopes = scores.sigmoid_()
            if columns.start == 0:
                slopes[:, 0].neg_()
            gradient[rows] += pull(slopes, kept, bank, index)
    value = total / len(anchor) + negatives * math.log1p(EPS / share)
    return value, gradient.div_(len(anchor) * temperature)


def by_product(bank: Tensor, contrast_index: Tensor) -> bool:
    """Whether one product with the whole bank is faster than picking its rows."""
    return len(bank) <= PRODUCT_RATIO * contrast_index.shape[1]


def blocks(anchor: Tensor, bank: Tensor, contrast_index: Tensor) -> Iterator[tuple[slice, slice]]:
    """Split the table of comparisons (B, K + 1) into blocks of rows and columns, each small enough for fast memory.

    On a CPU that is a cache. A product with the whole bank covers all columns at once, so then only the rows are split.
    """
    on_cpu = anchor.device.type == "cpu"
    batch, width = contrast_index.shape
    if by_product(bank, contrast_index):
        budget = 2**21 if on_cpu else 2**26
        block_height, block_width = max(1, budget // len(bank)), width
    else:
        budget = 2**19 if on_cpu else 2**26
        block_height = max(1, budget // (width * bank.shape[1]))
        block_width = max(1, min(width, budget // bank.shape[1]))
    for top in range(0, batch, block_height):
        for left in range(0, width, block_width):
            yield slice(top, top + block_height), slice(left, left + block_width)


def scores_of(anchor: Tensor, bank: Tensor, index: Tensor, whole: bool) -> tuple[Tensor, Tensor]:
    """Return the products of each anchor with its rows of the bank, and what :func:`pull` can use again."""
    if whole:
        products = anchor @ bank.to(anchor.dtype).T
        return products.gather(1, index), products
    picked = bank.index_select(0, index.flatten()).view(*index.shape, -1).to(anchor.dtype)  # faster than bank[index]
    return (picked @ anchor.unsqueeze(2)).squeeze(2), picked


def pull(slopes: Tensor, kept: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """Return the sum of each anchor's rows of the bank, weighted by the slopes."""
    if kept.ndim == 2:
        return kept.zero_().scatter_add_(1, index, slopes) @ bank.to(slopes.dtype)
    return (slopes.unsqueeze(1) @ kept).squeeze(1)


def check_shapes(
    student: Tensor, teacher: Tensor, student_bank: Tensor, teacher_bank: Tensor, contrast_index: Tensor
) -> None:
    """Raise a ``ValueError`` that names the shapes unless embeddings, banks and rows fit together."""
    check_same_shape("crd_loss", student, teacher, "embed both in the same width")
    banks_match = student_bank.ndim == 2 and student_bank.shape == teacher_bank.shape
    if student.ndim != 2 or not banks_match or student_bank.shape[1] != student.shape[1]:
        raise ValueError(
            f"crd_loss: expected embeddings (B, d) and banks (n, d), got student {tuple(student.shape)}, teacher "
            f"{tuple(teacher.shape)}, student_bank {tuple(student_bank.shape)} and teacher_bank "
            f"{tuple(teacher_bank.shape)}."
        )
    if contrast_index.ndim != 2 or len(contrast_index) != len(student) or contrast_index.shape[1] < 2:
        raise ValueError(
            f"crd_loss: expected contrast_index (B, K + 1) with the own row first and K >= 1 others, got "
            f"{tuple(contrast_index.shape)} for embeddings {tuple(student.shape)}."
        )
