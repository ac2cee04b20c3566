"""A teacher for each kind of sample: a column of the batch says which."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from lightning_kd.capture.batch import logits_of
from lightning_kd.capture.call import Call
from lightning_kd.capture.columns import columns_of
from lightning_kd.capture.private import tree_map_only, version_of
from lightning_kd.distributed.whole_state import is_sharded
from lightning_kd.files.precision import Precision
from lightning_kd.teachers.several import SeveralTeachers


@final
class RoutedTeacher(SeveralTeachers):
    """Asks for each row of the batch the teacher that a column names, such as one for each language or domain.

    The rows of one teacher are put together, only the teachers that are named in a batch run, and the answers are put
    back in the order of the batch. The teachers take the same inputs. They have the classes and the layers that the
    losses read, under the same names and of the same shapes, with the samples on the first axis: a layer is named as in
    each of them, ``"layer3"``. At set-up all of them are asked about the first samples.

    Shape:
        - the column: whole numbers (B,), or a list of B names.
        - Output: the teachers' logits (B, ...) and layers (B, ...).

    Args:
        teachers: The network for each value of the column, frozen here; a number is written as text: ``"0"``.
        key: Name of the column of a batch that is a dictionary. The student is not given the column, unless its
            ``forward`` names it.
        route: In the place of ``key``, a function that returns the values of the column for a batch of any form.
        in_order: Whether you vouch that the student is called with the rows in the order of the batch. By default that
            is looked at, and a call with other values than the batch holds is refused.
        dtype: Format that the teachers compute in; by default what their owner is converted to.

    Raises:
        ValueError: If there is no teacher, or not one of ``key`` and ``route``; at set-up, if the teachers' shapes
            differ, one lacks a layer, or FSDP2 splits them; in a call, if the batch has no such column, a row names no
            teacher, or the rows may be others.

    Example:
        >>> teacher = RoutedTeacher({"en": nn.Identity(), "fr": nn.Hardtanh(-1.0, 0.0)}, key="language")
        >>> batch = {"input": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "language": ["fr", "en"]}
        >>> teacher.answer(batch, Call(kwargs={"input": batch["input"]})).output
        tensor([[0., 0.],
                [3., 4.]])
    """

    owner: ClassVar[str] = "RoutedTeacher"

    def __init__(
        self,
        teachers: Mapping[str, nn.Module],
        key: str | None = None,
        *,
        route: Callable[[Any], Any] | None = None,
        in_order: bool = False,
        dtype: Precision | None = None,
    ) -> None:
        if not teachers:
            raise ValueError("RoutedTeacher: expected a network for each value of the column, got none.")
        if (key is None) == (route is None):
            raise ValueError("RoutedTeacher: expected key='COLUMN' or route=, a function of the batch.")
        self.routes = {str(value): index for index, value in enumerate(teachers)}
        """Number of the network for each value of the column."""
        self.key = key
        self.route = route
        self.reads_rows = not in_order
        super().__init__(list(teachers.values()), [f"the teacher of {value!r}" for value in self.routes], dtype)

    @property
    def columns(self) -> tuple[str, ...]:
        """The column that is read."""
        return () if self.key is None else (self.key,)

    def answer(self, batch: Any, call: Call) -> Call:
        """Return the answers of the teachers that the rows name, in the order of the rows."""
        places = self._places(batch, call)
        if len(places) == 1:
            return _joined(call, {index: self.ask(index, call) for index in places}, None)
        answers = {index: self.ask(index, _rows_of(call, rows)) for index, rows in places.items()}
        return _joined(call, answers, places)

    def first_answer(self, batch: Any, call: Call) -> Call:
        """Ask every teacher about all rows, and return for each row what its own says."""
        if is_sharded(self.module):
            raise ValueError("RoutedTeacher: FSDP2 would wait for teachers that not every process asks; use DDP.")
        places = self._places(batch, call)
        found = self.ask_all(batch, call)
        return _joined(call, {i: _rows_of_answer(found[i], rows, call.rows()) for i, rows in places.items()}, places)

    def _places(self, batch: Any, call: Call) -> dict[int, Tensor]:
        """Return the rows of each teacher that is named, by its number."""
        values, rows = self._values(batch), call.rows()
        if len(values) != rows:
            raise ValueError(f"RoutedTeacher: {len(values)} rows name a teacher, but {rows} are asked about.")
        if not values:
            return {0: torch.zeros(0, dtype=torch.long)}
        unknown = sorted({value for value in values if value not in self.routes})
        if unknown:
            raise ValueError(f"RoutedTeacher: {unknown[:5]} name no teacher; there are {list(self.routes)}.")
        found: dict[int, list[int]] = {}
        for row, value in enumerate(values):
            found.setdefault(self.routes[value], []).append(row)
        return {index: torch.tensor(own) for index, own in sorted(found.items())}

    def _values(self, batch: Any) -> list[str]:
        if self.route is not None:
            values: Any = self.route(batch)
        else:
            columns = columns_of(batch)
            values = None if columns is None or self.key is None else columns.get(self.key)
            if values is None:
                given = type(batch).__name__ if columns is None else list(columns)
                raise ValueError(
                    f"RoutedTeacher reads the column {self.key!r} of the batch, which is a dictionary then, but the "
                    f"batch has {given}. Or give route=, a function of the batch."
                )
        if isinstance(values, Tensor):
            if values.ndim != 1 or values.is_floating_point():
                raise ValueError(
                    f"RoutedTeacher: expected whole numbers (B,) that name the teachers, got {values.dtype} of shape "
                    f"{tuple(values.shape)}."
                )
            values = values.tolist()
        return [str(value) for value in values]


def _rows_of(call: Call, rows: Tensor) -> Call:
    """Return a call with some of its rows; tensors and lists of another length are left as they are."""
    count = call.rows()

    def chosen(value: Any) -> Any:
        if isinstance(value, list) and len(value) == count:
            return [value[row] for row in rows.tolist()]
        return tree_map_only(Tensor, lambda t: t[rows.to(t.device)] if t.ndim and len(t) == count else t, value)

    return Call(args=tuple(map(chosen, call.args)), kwargs={name: chosen(one) for name, one in call.kwargs.items()})


def _rows_of_answer(answer: Call, rows: Tensor, count: int) -> Call:
    """Return an answer to all rows as one to some of them.

    Raises:
        ValueError: If a layer has no row for each sample.
    """
    features = {}
    for name, value in answer.features.items():
        if not value.ndim or len(value) != count:
            raise ValueError(
                f"RoutedTeacher: layer {name!r} has the shape {tuple(value.shape)}, but rows can be put together where "
                f"the first axis has one for each of the {count} samples. Name another layer."
            )
        features[name] = value[rows.to(value.device)]
    logits = _logits(answer.output)
    return Call(called=True, output=None if logits is None else logits[rows], features=features)


def _joined(call: Call, answers: Mapping[int, Call], places: Mapping[int, Tensor] | None) -> Call:
    """Put the answers of several teachers together in the order of the rows."""

    def together(parts: dict[int, Tensor]) -> Tensor:
        if places is None:
            (part,) = parts.values()
            return part
        order = torch.cat([places[index] for index in parts])
        whole = torch.cat(list(parts.values()))
        return whole[order.argsort().to(whole.device)]

    first = next(iter(answers.values()))
    features = {
        name: together({index: answer.features[name] for index, answer in answers.items()}) for name in first.features
    }
    outputs = {index: _logits(answer.output) for index, answer in answers.items()}
    logits = {index: output for index, output in outputs.items() if output is not None}
    return Call(
        called=True,
        args=call.args,
        kwargs=call.kwargs,
        output=None if len(logits) < len(answers) else together(logits),
        features=features,
        versions=[version_of(value) for value in features.values()],
    )


def _logits(output: Any) -> Tensor | None:
    """Return the logits in an output, ``None`` if it is not known which they are; a loss that reads them then says."""
    with suppress(ValueError):
        return logits_of(output)
    return None
