"""A look at the first steps of a fit: counts what they compute anyway."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_kd.doctor.classes import ClassCounts, counts_for, finding_of_constant, spread
from lightning_kd.doctor.findings import Finding
from lightning_kd.doctor.networks import finding_of_untrained
from lightning_kd.engine.step import Terms
from lightning_kd.fit.run import DistillationRun
from lightning_kd.schedules import Schedule, value_at


class Examination:
    """Looks at the terms of steps, and says what they show of the teacher.

    It calls no network, draws no random number, and changes nothing. Values stay on their device until the end.

    Args:
        run: The run.
        steps: How many steps to look at.
        done: What is called then.
    """

    def __init__(self, run: DistillationRun, steps: int, done: Callable[["Examination"], None] | None = None) -> None:
        self.run = run
        self.left = steps
        self.rows = 0
        self._counts: dict[str, ClassCounts] = {}
        self._done = done
        self._spreads: dict[str, list[Tensor]] = {"teacher": [], "student": []}
        self._entropies: dict[float, list[Tensor]] = {}

    @torch.no_grad()
    def look(self, terms: Terms, step: int) -> None:
        """Look at a step.

        Args:
            terms: Its terms.
            step: Its number, which says nothing here.
        """
        if self.left <= 0:
            return
        self.left -= 1
        tensors = terms.tensors
        theirs = None if tensors is None else tensors.teacher_logits
        if tensors is not None and theirs is not None and len(theirs):
            ours = tensors.student_logits if tensors.compared_logits is None else tensors.compared_logits
            self.rows += len(theirs)
            self._count(theirs, ours, tensors.target if tensors.compared_logits is None else None)
        if not self.left and self._done is not None:
            self._done(self)

    def _count(self, theirs: Tensor, ours: Tensor | None, target: Tensor | None) -> None:
        self._spreads["teacher"].append(spread(theirs))
        if ours is not None:
            self._spreads["student"].append(spread(ours))
        if ours is None or ours.shape != theirs.shape:
            return
        for role, logits in (("teacher", theirs), ("student", ours)):
            if role not in self._counts and (made := counts_for(logits, target)) is not None:
                self._counts[role] = made
            if role in self._counts and isinstance(target, Tensor):
                self._counts[role].add(logits, target)
        for temperature in self.temperatures() if theirs.ndim == 2 and theirs.shape[1] > 1 else ():
            p = (theirs.float() / temperature).log_softmax(1)
            share = -(p.exp() * p).sum(1).mean() / math.log(theirs.shape[1])
            self._entropies.setdefault(temperature, []).append(share)

    @property
    def counts(self) -> ClassCounts | None:
        """How often the teacher named each class, where the outputs are scores of classes."""
        return self._counts.get("teacher") if self._is_of_classes else None

    @property
    def of_student(self) -> ClassCounts | None:
        """The same of the student."""
        return self._counts.get("student") if self._is_of_classes else None

    @property
    def _is_of_classes(self) -> bool:
        """Whether nothing tells that the outputs are something else than scores of classes.

        The first step may have told, which has been counted by then.
        """
        return self.run.task.task.kind in (None, "classes")

    def temperatures(self) -> list[float]:
        """Return the temperatures at which losses read the teacher's logits."""
        losses = [loss for loss in self.run.objective.components if loss.needs_teacher_logits]
        told = [(getattr(loss, "temperature", None), loss.moment) for loss in losses]
        return sorted({value_at(one, moment) for one, moment in told if isinstance(one, int | float | Schedule)})

    def entropies(self) -> dict[float, float]:
        """Return the teacher's mean entropy at each temperature, as a share of the largest there is, 0..1."""
        entropies = self._entropies if self._is_of_classes else {}
        return {temperature: float(torch.stack(all_).mean()) for temperature, all_ in entropies.items()}

    def findings(self) -> list[Finding]:
        """Return what the steps show, the surest first."""
        found: list[Finding] = []
        if self.run.teacher is None:
            return found
        of_classes = [] if self.counts is None else self.counts.findings()
        is_good = self.counts is not None and self.counts.know_the_labels
        network = self.run.teacher.layered
        if network is not None and not is_good and (untrained := finding_of_untrained(network)) is not None:
            found.append(untrained)
        spreads = {role: float(torch.stack(all_).max()) if all_ else math.nan for role, all_ in self._spreads.items()}
        constant = finding_of_constant(spreads["teacher"], spreads["student"], self.rows)
        if constant is not None:
            return [*found, constant]
        return found or of_classes  # what was never trained is near chance
