"""The sampler of a curriculum: random draws from the first part of an order, which grows."""

from collections.abc import Callable, Iterator
from typing import final

import torch
from torch import Tensor
from torch.utils.data import Sampler

from lightning_kd.schedules import LinearSchedule, Moment

_NEVER = (-1, 0, 0)
"""A value of ``drawn`` that is never due: the draw was for the length only."""


@final
class CurriculumSampler(Sampler[int]):
    """Draws from the first part of an order, which grows, and keeps the length of the epoch.

    Samples come in random permutations of the admitted part, one after another until the epoch is full. If the part
    grows with the steps, each step is a random draw without repetition, until all are admitted. From then on, an
    epoch is a permutation of the data set. All processes draw the same, and each takes every ``num_replicas``-th.

    Args:
        num_samples: Samples of an epoch in this process.
        pacing: The share of the data that is admitted at a moment, 0..1.
        batch_size: Samples of a batch in this process.
        num_replicas: Number of processes.
        rank: Which of them this is.
    """

    finds_its_place = True
    """A resumed fit skips no batches: the sampler itself leaves out those that the epoch has had."""

    def __init__(
        self, num_samples: int, pacing: LinearSchedule, batch_size: int = 1, num_replicas: int = 1, rank: int = 0
    ) -> None:
        self.num_samples = num_samples
        self.pacing = pacing
        self.batch_size = batch_size
        self.num_replicas, self.rank = num_replicas, rank
        self.order: Tensor | None = None
        self.prepare: Callable[[], None] | None = None
        self.seed = 0
        self.epoch = 0
        self.step = 0
        self.batches_a_step = 1
        self.skip = 0
        self.drawn: tuple[int, int, int] | None = None

    def __len__(self) -> int:
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        """Begin another epoch; the Trainer calls this."""
        self.epoch = epoch

    @property
    def due(self) -> tuple[int, int, int]:
        """What decides which samples are drawn next: epoch, step, and batches of the epoch to leave out."""
        return self.epoch, self.step, self.skip

    @due.setter
    def due(self, due: tuple[int, int, int]) -> None:
        self.epoch, self.step, self.skip = due

    def admitted(self, moment: Moment) -> int:
        """Return the number of samples that are admitted at a moment, at least 1."""
        assert self.order is not None
        return max(1, round(self.pacing.at(moment) * len(self.order)))

    def __iter__(self) -> Iterator[int]:
        if self.prepare is not None:
            self.prepare()
        if self.order is None:  # before the fit, Lightning only counts the batches
            self.drawn = _NEVER
            yield from range(self.num_samples)
            return
        self.drawn = self.due
        skip, self.skip = (
            self.skip * self.batch_size,
            0,
        )  # samples to leave out, in an epoch that is resumed in the middle
        for samples in self._steps():
            if skip < len(samples):
                yield from samples[skip:]
            skip = max(skip - len(samples), 0)

    def _steps(self) -> Iterator[list[int]]:
        """Yield this process's samples of each optimizer step."""
        assert self.order is not None
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        by_step = self.pacing.unit == "step"
        size = self.batch_size * self.batches_a_step if by_step else self.num_samples
        left = torch.empty(0, dtype=torch.int64)
        for number, start in enumerate(range(0, self.num_samples, size)):
            admitted = self.admitted(Moment(step=self.step + number, epoch=self.epoch))
            needed = min(size, self.num_samples - start) * self.num_replicas
            if by_step and admitted < len(self.order):
                drawn = _draw(admitted, needed, generator)
            else:
                while len(left) < needed:
                    left = torch.cat([left, torch.randperm(admitted, generator=generator)])
                drawn, left = left[:needed], left[needed:]
            yield self.order[drawn[self.rank :: self.num_replicas]].tolist()


def _draw(admitted: int, needed: int, generator: torch.Generator) -> Tensor:
    """Draw numbers below ``admitted``, without repetition if there are enough, at a cost that does not grow with it."""
    if 4 * needed > admitted:
        rounds = -(-needed // admitted)
        return torch.cat([torch.randperm(admitted, generator=generator) for _ in range(rounds)])[:needed]
    rows: dict[int, None] = {}
    while len(rows) < needed:
        rows |= dict.fromkeys(torch.randint(admitted, (2 * needed,), generator=generator).tolist())
    return torch.tensor(list(rows)[:needed])
