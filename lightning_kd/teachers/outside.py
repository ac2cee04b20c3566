"""Teachers that run outside: a plain function, perhaps one that asks another process. They give logits only."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from lightning_kd.capture.call import Call
from lightning_kd.teachers.base import Teacher


class OutsideTeacher(Teacher):
    """Answers with logits that somebody else computes, and checks these in every step.

    A subclass writes :meth:`logits`.
    """

    owner: ClassVar[str] = "OutsideTeacher"
    """The name of the class, for messages."""
    _form: tuple[int, int] | None = None

    @abstractmethod
    def logits(self, batch: Any, call: Call) -> Any:
        """Return the logits for a call: a tensor, or an array or nested list that torch can take."""

    def watch(self, layers: Iterable[str]) -> None:
        """Refuse layers.

        Raises:
            ValueError: If a loss reads a layer of the teacher.
        """
        names = sorted(set(layers))
        if names:
            raise ValueError(
                f"A loss reads the layer(s) {names} of the teacher, but a {self.owner} gives logits only. Take a loss "
                "of logits, such as KDLoss, or a teacher that is a network."
            )

    def first_answer(self, batch: Any, call: Call) -> Call:
        """Answer at set-up, and learn how many classes there are."""
        self._form = None
        return self.answer(batch, call)

    def answer(self, batch: Any, call: Call) -> Call:
        """Return the logits, on the student's device and without a graph."""
        with torch.no_grad():
            return Call(called=True, args=call.args, kwargs=call.kwargs, output=self._checked(batch, call))

    def _checked(self, batch: Any, call: Call) -> Tensor:
        found = self.logits(batch, call)
        try:
            value = found.detach() if isinstance(found, Tensor) else torch.as_tensor(found)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{self.owner}: expected logits, got a {type(found).__name__}: {error}.") from None
        if not value.is_floating_point():
            raise ValueError(f"{self.owner}: expected logits of a floating format, got {value.dtype}.")
        if value.dtype == torch.float64 and not isinstance(found, Tensor):  # as NumPy computes by itself
            value = value.float()
        rows = call.rows()
        if not value.ndim or len(value) != rows:
            raise ValueError(
                f"{self.owner}: expected logits of {rows} rows, as the student was called with, got the shape "
                f"{tuple(value.shape)}."
            )
        # classes are on axis 1, but on the last of tokens (B, T, V)
        form = (value.ndim, 1 if value.ndim < 2 else value.shape[2 if value.ndim == 3 else 1])
        if self._form is None:
            self._form = form
        elif form != self._form:
            raise ValueError(
                f"{self.owner}: the logits have the shape {tuple(value.shape)}, but those of the first samples had "
                f"{self._form[0]} axes and {self._form[1]} classes."
            )
        bad = value.numel() - int(value.isfinite().sum())
        if bad:
            raise ValueError(f"{self.owner}: {bad} of {value.numel()} logits are not finite.")
        tensors = (one for one in (*call.args, *call.kwargs.values()) if isinstance(one, Tensor))
        first = next(tensors, None)
        return value if first is None else value.to(first.device)


@final
class FunctionTeacher(OutsideTeacher):
    """Asks a plain function for the teacher's logits: a server, a library, a table, a program of another language.

    No gradient reaches the function, and what it returns is checked in every step: a floating format, a row for each
    of the student's, as many classes as at first, all finite. ``examples/served_teacher`` asks a process over HTTP.

    Shape:
        - Output of the function: :math:`(B, C)`, :math:`(B, T, V)` or :math:`(B, C, H, W)`, a tensor on any device, a
          NumPy array or a nested list.

    Args:
        function: Returns the logits. In a configuration it is named by its dotted path.
        reads: Whether it is called with the inputs of the student, ``function(x)``, as ``teacher_inputs`` changes
            them, or with the batch as the data loader gave it.
        in_order: Whether you vouch that the student is called with the rows in the order of the batch. By default that
            is looked at where the function reads the batch, and a call with other values is refused.

    Raises:
        ValueError: If ``reads`` is neither; at set-up, if a loss reads a layer of the teacher; in a call, if what the
            function returns is none of these.

    Example:
        >>> teacher = FunctionTeacher(lambda x: [[float(row.sum()), 0.0] for row in x])
        >>> teacher.answer(None, Call(args=(torch.ones(2, 3),))).output
        tensor([[3., 0.],
                [3., 0.]])
    """

    owner: ClassVar[str] = "FunctionTeacher"

    def __init__(
        self, function: Callable[..., Any], reads: Literal["inputs", "batch"] = "inputs", *, in_order: bool = False
    ) -> None:
        if reads not in ("inputs", "batch"):
            raise ValueError(f"FunctionTeacher: expected reads 'inputs' or 'batch', got {reads!r}.")
        self.function = function
        self.reads = reads
        self.reads_rows = reads == "batch" and not in_order

    def logits(self, batch: Any, call: Call) -> Any:
        """Return what the function returns."""
        return self.function(batch) if self.reads == "batch" else self.function(*call.args, **call.kwargs)
