"""CRD's banks split by rows: each process remembers its part of the rows, and answers for them to all processes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.distributed.gather import gather, is_distributed
from lightning_kd.losses.samples.crd_blocks import (
    EPS,
    blocks,
    by_product,
    normalizers_of,
    pull,
    scores_of,
    with_gradient,
)
from lightning_kd.losses.tensors import upcast

MARK = "split_over"
"""The buffer that holds over how many processes the banks are split."""


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of a bank that one of several processes holds: as many as every other, the last ones may be unused.

    Args:
        first: The first row.
        rows: How many there are.
        total: Rows of the whole bank.

    Example:
        >>> Part.of_this_process(5)
        Part(first=0, rows=5, total=5)
    """

    first: int
    rows: int
    total: int

    @classmethod
    def of_this_process(cls, total: int) -> "Part":
        """Return the part of the process that asks."""
        rank, world = (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)
        rows = -(-total // world)
        return cls(rank * rows, rows, total)

    def cut(self, bank: Tensor) -> Tensor:
        """Return a copy of the part of a whole bank, filled up with zeros."""
        part = bank[self.first : self.first + self.rows]
        return torch.cat([part, part.new_zeros(self.rows - len(part), bank.shape[1])])

    def holds(self, index: Tensor) -> Tensor:
        """Return which rows are in the part."""
        return (index >= self.first) & (index < self.first + self.rows)

    def keep(self, index: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the places in the part of the rows that it holds, and what there is for these."""
        held = self.holds(index)
        return self.within(index[held]), rows[held]

    def within(self, index: Tensor) -> Tensor:
        """Return the places of rows in the part; any place for those that it does not hold."""
        return (index - self.first).clamp(0, self.rows - 1)


def world() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def check_processes(saved: int) -> None:
    """Raise a ``ValueError`` with the remedy unless banks were split over as many processes as there are."""
    if saved != world():
        was = f"split over {saved} process(es)" if saved else "not split"
        raise ValueError(
            f"CRDLoss: the banks of this checkpoint are {was}, and there are {world()} now, with split_banks=True. Go "
            f"on with {f'{saved} process(es)' if saved else 'split_banks=False'}, or begin a new fit with the "
            "weights of the student."
        )


def check_saved(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Raise a ``ValueError`` with the remedy unless saved losses have banks that are split as those of a fit are.

    Args:
        own: State of the losses of the fit.
        saved: State of the losses in the checkpoint.
    """
    for name in own:
        if name.endswith(f".{MARK}") and name.replace(MARK, "student_bank") in saved:
            check_processes(int(saved[name]) if name in saved else 0)


def take_shapes(buffers: dict[str, Tensor | None], saved: Mapping[str, Tensor], split: bool) -> None:
    """Give banks the shapes that they have in a checkpoint, so that it can be read, if only to evaluate.

    Args:
        buffers: The buffers of the loss.
        saved: State of the loss in the checkpoint.
        split: Whether the banks are to be split.

    Raises:
        ValueError: If the banks are not to be split, but those of the checkpoint are.
    """
    if not split and MARK in saved:
        raise ValueError(
            "CRDLoss: the banks of this checkpoint are split by rows over processes; write CRDLoss(split_banks=True)."
        )
    if not split or "student_bank" not in saved:
        return
    for name in ("student_bank", "teacher_bank"):
        bank = buffers.get(name)
        if bank is not None and bank.shape != saved[name].shape:
            buffers[name] = bank.new_zeros(saved[name].shape)
    if MARK not in saved:
        buffers.pop(MARK, None)


def log_sums_of_parts(
    student: Tensor,
    teacher: Tensor,
    student_bank: Tensor,
    teacher_bank: Tensor,
    contrast_index: Tensor,
    temperature: float,
    *,
    part: Part,
) -> Tensor:
    """Return what ``log_sums`` returns of whole banks, for the samples of this process."""
    every = _Everyone(contrast_index, part)
    sides = [
        (every.scores(gather(anchor.detach()), bank)[every.mine] / temperature).logsumexp(dim=1)
        for anchor, bank in ((student, teacher_bank), (teacher, student_bank))
    ]
    return torch.stack(sides, dim=1)


def crd_loss_of_parts(
    student: Tensor,
    teacher: Tensor,
    student_bank: Tensor,
    teacher_bank: Tensor,
    contrast_index: Tensor,
    *,
    log_normalizers: Tensor | None,
    temperature: float,
    part: Part,
) -> Tensor:
    """Return what ``crd_loss`` returns of whole banks, for the samples of this process; all processes must call it.

    Each process compares the samples of all with the rows that it holds. Products and gradients are added up over the
    processes, in an order that is always the same.

    Args:
        student: Embeddings of the student, of length one, (B, d).
        teacher: Those of the teacher.
        student_bank: The rows of the student's bank that this process holds.
        teacher_bank: Those of the teacher's bank.
        contrast_index: Rows of the whole banks to compare each sample with, (B, K + 1), its own in column 0.
        log_normalizers: Logarithms of the two normalisers; by default those of this batch.
        temperature: Divides the similarities, > 0.
        part: The rows that this process holds.
    """
    exact = torch.promote_types(student_bank.dtype, torch.float32)
    student, teacher = upcast(student).to(exact), upcast(teacher).to(exact)
    with torch.autocast(device_type=student.device.type, enabled=False):
        if log_normalizers is None:
            sums = log_sums_of_parts(
                student, teacher, student_bank, teacher_bank, contrast_index, temperature, part=part
            )
            log_normalizers = normalizers_of(sums, part.total, contrast_index.shape[1])
        every = _Everyone(contrast_index, part)
        return every.one_side(student, teacher_bank, log_normalizers[0], temperature) + every.one_side(
            teacher, student_bank, log_normalizers[1], temperature
        )


class _Everyone:
    """The comparisons of the samples of all processes with the rows that this process holds."""

    def __init__(self, contrast_index: Tensor, part: Part) -> None:
        self.part = part
        index = gather(contrast_index.long())
        owner = torch.full((len(contrast_index),), dist.get_rank(), device=contrast_index.device)
        self.mine = gather(owner) == dist.get_rank()
        self.held = part.holds(index)
        self.places = part.within(index)

    @torch.no_grad()
    def scores(self, anchor: Tensor, bank: Tensor) -> Tensor:
        """Return the products of all samples with their rows, (B of all processes, K + 1)."""
        scores = anchor.new_empty(self.places.shape)
        whole = by_product(bank, self.places)
        for at in blocks(anchor, bank, self.places):
            scores[at] = scores_of(anchor[at[0]], bank, self.places[at], whole)[0]
        scores.mul_(self.held)
        dist.all_reduce(scores)
        return scores

    def one_side(self, anchor: Tensor, bank: Tensor, log_normalizer: Tensor, temperature: float) -> Tensor:
        wanted = torch.is_grad_enabled()
        value, gradient = self._value_and_gradient(anchor.detach(), bank, log_normalizer, temperature, wanted)
        if not wanted or not anchor.requires_grad:
            return value
        return with_gradient(anchor, value, gradient)

    @torch.no_grad()
    def _value_and_gradient(
        self, own: Tensor, bank: Tensor, log_normalizer: Tensor, temperature: float, wanted: bool
    ) -> tuple[Tensor, Tensor]:
        anchor = gather(own)
        negatives, count = self.places.shape[1] - 1, max(len(own), 1)
        share = negatives / self.part.total
        scores = self.scores(anchor, bank).div_(temperature)
        scores.sub_(log_normalizer.to(scores.dtype) + math.log(share + EPS))
        scores[:, 0].neg_()
        value = F.softplus(scores[self.mine], threshold=40.0).sum() / count
        value = value + negatives * math.log1p(EPS / share) if len(own) else value
        gradient = torch.zeros_like(anchor)
        if wanted:
            slopes = scores.sigmoid_()
            slopes[:, 0].neg_()
            slopes.mul_(self.held)
            whole = by_product(bank, self.places)
            for at in blocks(anchor, bank, self.places):
                kept = scores_of(anchor[at[0]], bank, self.places[at], whole)[1]
                gradient[at[0]] += pull(slopes[at], kept, bank, self.places[at])
            dist.all_reduce(gradient)
        return value, gradient[self.mine].div_(count * temperature)
