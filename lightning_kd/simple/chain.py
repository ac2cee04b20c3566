"""Teacher assistants in one call: a large teacher teaches a network of middle size, which teaches the student."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info
from torch import nn

from lightning_kd.capture.networks import num_parameters
from lightning_kd.losses.base import DistillationLoss
from lightning_kd.simple.data import Data
from lightning_kd.simple.distill import distill
from lightning_kd.simple.result import DistillationResult
from lightning_kd.teachers.base import Teacher

_OF_TEACHER = ("teacher_classes", "teacher_inputs")
"""Options that are of the teacher alone, and not of an assistant, which has the student's classes and inputs."""


@dataclass(frozen=True)
class ChainResult:
    """The students of a chain, with their numbers.

    Args:
        links: What came of each link, the last one being the student's.
        direct: The same of a copy of the student that the teacher has taught directly, ``None`` if none was.

    Example:
        See :func:`distill_chain`.
    """

    links: list[DistillationResult]
    direct: DistillationResult | None = field(default=None)

    @property
    def student(self) -> nn.Module:
        """The last network of the chain, in eval mode."""
        return self.links[-1].student

    def __str__(self) -> str:
        rows = [(f"assistant {number}", link) for number, link in enumerate(self.links[:-1], start=1)]
        rows.append(("student", self.links[-1]))
        if self.direct is not None:
            rows.append(("student, directly", self.direct))
        names = [name for name in self.links[-1].metrics if not name.startswith("teacher_")]
        lines = [f"{'':<20}{'parameters':>14}{''.join(f'{name:>16}' for name in names)}"]
        first = self.links[0].metrics
        if any(f"teacher_{name}" in first for name in names):
            cells = [f"{first[f'teacher_{name}']:>16.4f}" if f"teacher_{name}" in first else 16 * " " for name in names]
            lines.append(f"{'teacher':<20}{'':>14}{''.join(cells)}".rstrip())
        for title, result in rows:
            cells = [f"{result.metrics[name]:>16.4f}" if name in result.metrics else 16 * " " for name in names]
            lines.append(f"{title:<20}{num_parameters(result.student):>14,}{''.join(cells)}".rstrip())
        return "\n".join(lines)


def distill_chain(
    students: Sequence[nn.Module | str],
    teacher: nn.Module | Teacher | str,
    train: Data,
    val: Data | None = None,
    *,
    losses: Sequence[DistillationLoss] | None = None,
    direct: bool = True,
    **options: Any,
) -> ChainResult:
    """Train teacher assistants one after another, and the student last (Mirzadeh et al., AAAI 2020).

    The teacher teaches the first network, each network the next one. A student that is far smaller than its teacher may
    learn more from a network of middle size. Whether it does is measured: a copy of the student, with the same new
    weights, is taught by the teacher directly, for as many epochs and with the same seed. The table tells both.

    Args:
        students: The networks or their names, the largest first and the student last; two at least.
        teacher: The trained network, a ``Teacher`` of another kind, or a name.
        train: The training data, as for :func:`distill`.
        val: Data that is held out, for the numbers.
        losses: The distillation losses; each link gets copies of its own. Chosen if left out.
        direct: Whether the teacher also teaches a copy of the student directly.
        **options: Further options of :func:`distill`. ``teacher_classes`` and ``teacher_inputs`` are of the teacher
            itself, not of an assistant.

    Returns:
        The trained networks with their numbers; as text a table of them.

    Raises:
        ValueError: If there are fewer than two students.

    Example:
        >>> import torch
        >>> x, y = torch.randn(64, 4), torch.randint(0, 3, (64,))
        >>> nets = [nn.Linear(4, 3), nn.Linear(4, 3)]
        >>> quiet = {"enable_progress_bar": False, "accelerator": "cpu"}
        >>> result = distill_chain(nets, nn.Linear(4, 3), (x, y), (x, y), max_epochs=1, **quiet)
        >>> len(result.links), result.student is nets[-1], result.direct.student is nets[-1]
        (2, True, False)
    """
    if len(students) < 2:
        raise ValueError(
            f"distill_chain: expected two networks or more, the assistants and last the student, got {len(students)}; "
            "without an assistant use distill."
        )
    untouched = copy.deepcopy(students[-1]) if direct else None

    def taught(network: nn.Module | str, guide: nn.Module | Teacher | str, said: str) -> DistillationResult:
        rank_zero_info(said)
        of_teacher = {name: value for name, value in options.items() if guide is teacher or name not in _OF_TEACHER}
        return distill(network, guide, train, val, losses=copy.deepcopy(losses), **of_teacher)

    guide: nn.Module | Teacher | str = teacher
    links: list[DistillationResult] = []
    for number, network in enumerate(students, start=1):
        who = "the student" if number == len(students) else f"assistant {number}"
        links.append(taught(network, guide, f"Link {number} of {len(students)}: {who}."))
        guide = links[-1].student
    beside = None if untouched is None else taught(untouched, teacher, "Beside the chain: the student, directly.")
    result = ChainResult(links, beside)
    rank_zero_info(f"\n{result}")
    return result
