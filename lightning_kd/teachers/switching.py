"""One teacher after another over the time of a fit."""

from collections.abc import Sequence
from typing import Any, ClassVar, final

from torch import nn

from lightning_kd.capture.call import Call
from lightning_kd.files.precision import Precision
from lightning_kd.schedules import Moment, Unit, check_unit, check_whole
from lightning_kd.teachers.several import SeveralTeachers


@final
class SwitchingTeacher(SeveralTeachers):
    r"""Asks one teacher after another, such as an easy one first; the others do not run meanwhile.

    With milestones :math:`m_1 < m_2 < ...` teacher number :math:`|\{i: m_i \le t\}|`, counted from 0, answers after
    :math:`t` epochs or steps. That depends on nothing but :math:`t`, so a resumed fit goes on with the same teacher.

    The teachers take the same inputs. They have the classes and the layers that the losses read, under the same names
    and of the same shapes: a layer is named as in each of them, ``"layer3"``. At set-up all of them are asked, so that
    one that does not fit is found then. An evaluation in a fit asks the teacher of the epochs and steps done by then,
    and logs ``val/teacher_accuracy`` each time. An evaluation outside a fit asks the one that was asked last, the first
    before any fit.

    Args:
        teachers: The networks, in order; frozen here.
        milestones: Epochs or steps at which the next one begins, ascending, one fewer than teachers.
        unit: Whether to count epochs or optimizer steps, those of all optimizers together, as Lightning does.
        dtype: Format that the teachers compute in; by default what their owner is converted to.

    Raises:
        ValueError: If the numbers of teachers and milestones do not match, or the milestones are not ascending whole
            numbers >= 1; at set-up, if the teachers' shapes differ or one lacks a layer.

    Example:
        >>> teacher = SwitchingTeacher([nn.Linear(2, 3), nn.Linear(2, 3)], milestones=[5])
        >>> [teacher.index_at(Moment(epoch=epoch)) for epoch in (0, 4, 5, 6)]
        [0, 0, 1, 1]
    """

    owner: ClassVar[str] = "SwitchingTeacher"
    changes_over_time = True

    def __init__(
        self,
        teachers: Sequence[nn.Module],
        milestones: Sequence[int],
        unit: Unit = "epoch",
        *,
        dtype: Precision | None = None,
    ) -> None:
        check_unit(self.owner, unit)
        if len(teachers) != len(milestones) + 1:
            raise ValueError(
                f"SwitchingTeacher: expected one teacher more than milestones, got {len(teachers)} teachers and "
                f"{len(milestones)} milestones."
            )
        for milestone in milestones:
            check_whole(self.owner, "milestone", milestone, 1)
        if list(milestones) != sorted(set(milestones)):
            raise ValueError(f"SwitchingTeacher: expected ascending milestones, got {list(milestones)}.")
        self.milestones = list(milestones)
        self.unit: Unit = unit
        self.index = 0
        """Number of the teacher that is asked now."""
        super().__init__(teachers, [f"teacher {i} ({type(one).__name__})" for i, one in enumerate(teachers)], dtype)

    def index_at(self, moment: Moment) -> int:
        """Return the number of the teacher that answers at a moment of the run."""
        return sum(milestone <= moment.count(self.unit) for milestone in self.milestones)

    def set_moment(self, moment: Moment) -> None:
        """Ask from now on the teacher of this moment."""
        self.index = self.index_at(moment)

    def answer(self, batch: Any, call: Call) -> Call:
        """Return what the teacher of the moment says."""
        return self.ask(self.index, call)

    def first_answer(self, batch: Any, call: Call) -> Call:
        """Ask all of them, and return what the first says."""
        return self.ask_all(batch, call)[0]
