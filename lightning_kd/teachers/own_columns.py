"""Inputs of the teacher that lie in columns of their own, as where both networks have a tokenizer of their own."""

from typing import Any, final

from torch import nn

from lightning_kd.capture.call import Call
from lightning_kd.capture.columns import columns_of, takes, without_labels
from lightning_kd.capture.rows import is_of_batch
from lightning_kd.teachers.inputs import Inputs, TeacherInputs

_PREFIX = "teacher_"


@final
class OwnColumns(TeacherInputs):
    """The columns of the batch whose names begin with ``teacher_``, under the names without it, and nothing else.

    For networks with tokenizers of their own: a batch holds ``input_ids``, ``attention_mask`` and ``labels`` of the
    student, and ``teacher_input_ids``, ``teacher_attention_mask`` and ``teacher_labels`` of the same texts. The labels
    are for ``ULDLoss``; the teacher itself gets them only if it makes the inputs of a decoder of them.

    Raises:
        ValueError: In a call, if the batch has no such column, or its rows may not be those that the student was called
            with.

    Example:
        >>> view = OwnColumns()
        >>> view.of_batch({"input_ids": 1, "teacher_input_ids": 2, "teacher_labels": 3}, (), {"input_ids": 1})
        ((), {'input_ids': 2})
    """

    def __init__(self) -> None:
        self._teacher: nn.Module | None = None
        self._has_seen = False

    @property
    def ready(self) -> bool:
        """Whether it has seen the teacher."""
        return self._has_seen

    def see_networks(self, student: object, teacher: object) -> None:
        """Learn what the teacher takes."""
        self._teacher = teacher if isinstance(teacher, nn.Module) else None
        self._has_seen = True

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
        """Raise a ``ValueError``: the batch is needed."""
        raise ValueError("OwnColumns reads the batch itself; call its of_batch(batch, args, kwargs).")

    def of_batch(self, batch: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
        """Return the teacher's own columns."""
        columns = columns_of(batch) or {}
        own = {
            name.removeprefix(_PREFIX): value
            for name, value in columns.items()
            if isinstance(name, str) and name.startswith(_PREFIX)
        }
        if not own:
            raise ValueError(f"OwnColumns: no column of the batch begins with {_PREFIX!r}; it has {list(columns)}.")
        if not is_of_batch(Call(args=args, kwargs=kwargs), batch):
            raise ValueError(
                "OwnColumns: the student was called with other values than the batch holds, so the rows of the "
                "teacher's columns may not be the same. Override teacher_inputs(batch, args, kwargs)."
            )
        if self._teacher is None:
            return (), {name: value for name, value in own.items() if "label" not in name}
        taken = takes(self._teacher)
        return (), without_labels({name: value for name, value in own.items() if name in taken}, own, self._teacher)
