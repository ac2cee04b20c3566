"""A teacher that is not the same at the end of a fit as at its beginning is told."""

from typing import TypeGuard

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_kd.capture.fingerprint import as_one_number, changed, fingerprint
from lightning_kd.capture.networks import original
from lightning_kd.distributed.whole_state import is_sharded
from lightning_kd.teachers.base import Teacher
from lightning_kd.teachers.frozen import FrozenTeacher

_SHOWN = 5


class AsItWas:
    """Remembers a frozen teacher by a number for each weight and buffer.

    A teacher that a callback makes of the student changes on purpose, and is passed over, as is one that FSDP2 splits.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        """What the teacher was when the losses were set up, for checkpoints; ``None`` if that is not known."""
        self._prints: dict[str, int] = {}
        self._looked_early = self._told = False

    def set_up(self, teacher: Teacher | None, *, made_of_student: bool) -> None:
        """Remember the teacher as the user gave it, before a device or a format is chosen for it."""
        self.number = None if teacher is None else teacher.number
        if _can_be_known(teacher) and not made_of_student:
            self.number = as_one_number(fingerprint(teacher.module))

    def begin(self, teacher: Teacher | None, *, made_of_student: bool) -> None:
        """Remember the teacher as the training begins."""
        self._looked_early = self._told = False
        self._prints = {}
        if _can_be_known(teacher) and not made_of_student:
            self._prints = fingerprint(teacher.module)

    def check(self, teacher: Teacher | None, *, early: bool = False) -> None:
        """Warn once if the teacher has changed since the training began.

        Args:
            teacher: The teacher.
            early: Whether the training goes on; only the first look then is one.
        """
        if early and self._looked_early:
            return
        self._looked_early = True
        if self._told or not self._prints or not _can_be_known(teacher):
            return
        names = changed(self._prints, fingerprint(teacher.module))
        if not names:
            return
        self._told = True
        buffers = {name for name, _ in teacher.module.named_buffers()}
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        written = all(name in buffers for name in names)
        why = (
            "Its forward writes them, also in eval mode; write them only if self.training"
            if written
            else "Somebody trains it or writes to it; give the other one a copy: copy.deepcopy(teacher)"
        )
        rank_zero_warn(
            f"The teacher {type(original(teacher.module)).__name__} is frozen, but is not what it was when the "
            f"training began: {', '.join(map(repr, names[:_SHOWN]))}{more} changed, so it may teach something else "
            f"in each step. {why}."
        )


def _can_be_known(teacher: Teacher | None) -> TypeGuard[FrozenTeacher]:
    return isinstance(teacher, FrozenTeacher) and not teacher.on_meta and not is_sharded(teacher.module)
