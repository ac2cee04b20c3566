"""Whether a fit calls the student with the inputs that the teacher had when its answers were stored."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_kd.capture.call import Call
from lightning_kd.capture.columns import columns_of
from lightning_kd.capture.contents import MASK, contents, inputs_of
from lightning_kd.capture.options import NO_OPTION, is_answer_or_row, leaves_of_call, plain_option, same_option
from lightning_kd.capture.padded_rows import positions_of
from lightning_kd.capture.rows import is_of_batch
from lightning_kd.files.store.manifest import COLUMNS, OPTIONS, TAKES, Manifest

_ABSENT = object()
_OWN_COLUMNS = "teacher_"
"""How the columns of a teacher's own begin, which a fit of stored answers need not carry."""
_POSITIONS = "position_ids"


class SeenInputs:
    """Compares the inputs of a fit with those of a store.

    Which inputs count is known of stores that say what the teacher takes; of others the common inputs are compared.

    Args:
        manifest: What the store says of itself.
        folder: Where it is, for messages.
    """

    def __init__(self, manifest: Manifest, folder: str) -> None:
        self.inputs, self.folder = manifest.inputs, folder
        takes = manifest.teacher.get(TAKES)
        self.takes: Mapping[str, Any] | None = takes
        self.options: Mapping[str, Any] = manifest.data.get(OPTIONS, {})
        self.held = manifest.data.get(COLUMNS, [])
        """The columns of the writer's batches; what the teacher was not given of them is not given in a fit either."""
        self.required = [] if takes is None else [name for name in self.inputs if self._was_read(name)]
        self._watched: dict[tuple[Any, ...], list[tuple[str, Any]]] = {}
        """What the options must be, by the names of the inputs that there are."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the inputs that the teacher had when the store was written."""
        return tuple(name.partition(".")[0] for name in (*self.required, *self.options))

    def numbers(self, call: Call, batch: Any) -> dict[str, Tensor]:
        """Return the contents of the student's inputs by the names of the store, and check which there are.

        Args:
            call: The student's call.
            batch: The batch, which may hold inputs that only the teacher takes.

        Raises:
            ValueError: If an input is missing, or new, or an option of the whole batch is another.
        """
        found = contents(call.args, call.kwargs)
        names = self._names(found)
        common = {names[name]: of for name, of in found.items() if names.get(name) in self.inputs}
        if not common:
            raise ValueError(
                f"CachedTeacher: {self.folder!r} was written of the inputs {list(self.inputs)}, but the student is "
                f"called with {list(found) or 'no tensors'}, so its samples cannot be found."
            )
        if self.takes is not None:
            missing = [name for name in self.required if name not in common]
            if missing:
                common |= self._in_batch(missing, call, batch, len(next(iter(common.values()))))
            self._check_options(call, batch, names)
        return common

    def _names(self, found: Mapping[str, Any]) -> dict[str, str]:
        """Return the name that the store has for each input: given by position once, by its name another time."""
        names = {name: name for name in found}
        if found.keys() == self.inputs.keys():
            return names
        new, left = [n for n in found if n not in self.inputs], [n for n in self.inputs if n not in found]
        if len(found) == 1 == len(self.inputs) and new:
            return {new[0]: left[0]}
        for name in new:
            other = self._other(name)
            if other in left:
                names[name] = other
                left.remove(other)
        new = [name for name in new if names[name] == name]
        if len(new) == 1 == len(left) and (new[0].isdigit() or left[0].isdigit()):
            names[new[0]] = left[0]
        return names

    def _other(self, name: str) -> str:
        """Return the name of an input that is given by position, or its position."""
        positional = [] if self.takes is None else self.takes["positional"]
        if name.isdigit():
            return positional[int(name)] if int(name) < len(positional) else name
        return str(positional.index(name)) if name in positional else name

    def _was_read(self, name: str) -> bool:
        """Whether the teacher may have read an input that it had when the store was written."""
        assert self.takes is not None, "checked by the caller"
        top = name.partition(".")[0]
        if is_answer_or_row(top) or top.startswith(_OWN_COLUMNS):
            return False
        return top.isdigit() or self.takes["every"] or self.takes["by_function"] or top in self.takes["named"]

    def _in_batch(self, names: list[str], call: Call, batch: Any, rows: int) -> dict[str, Tensor]:
        """Return the contents of inputs that the student does not take, out of the batch."""
        held = inputs_of((), _named(batch))
        if _POSITIONS in names and _POSITIONS not in held:
            held[_POSITIONS] = _counted_positions(call)
        absent = [name for name in names if name not in held]
        if absent:
            raise ValueError(
                f"CachedTeacher: {self.folder!r} was written of batches with the input {absent[0]!r}, which the "
                "teacher takes, but in the fit neither the student's call nor the batch has it, so what the teacher "
                "would say is not known. Leave it in the batch, under this name (the student need not take it), "
                "or write the store anew without it."
            )
        if not is_of_batch(call, batch):
            return {}  # a step of the user's may have mixed the samples
        mask = _named(batch).get(MASK, call.kwargs.get(MASK))
        known = {name: held[name] for name in names if len(held[name]) == rows and not _is_padded(held[name], mask)}
        return contents((), {**known, MASK: mask}) if known else {}

    def _check_options(self, call: Call, batch: Any, names: Mapping[str, str]) -> None:
        self._check_positions(call, batch)
        columns = columns_of(batch)
        key = (len(call.args), *call.kwargs, None, *(columns or ()))
        watched = self._watched.get(key)
        if watched is None:
            watched = self._watched[key] = [*self.options.items(), *self._new_options(call, batch, names)]
        if not watched:
            return
        given = {**leaves_of_call((), _named(batch)), **leaves_of_call(call.args, call.kwargs)}
        for name, wanted in watched:
            value = given.get(name, given.get(self._other(name), _ABSENT))
            if value is _ABSENT:
                value = self._default(name)
            if value is _ABSENT or not same_option(value, wanted):
                self._refuse(name, wanted, value)

    def _check_positions(self, call: Call, batch: Any) -> None:
        """Refuse positions of several documents in a row; those that count the tokens are as if left out."""
        assert self.takes is not None, "checked by the caller"
        if _POSITIONS in self.inputs or not (self.takes["every"] or _POSITIONS in self.takes["named"]):
            return
        given = call.kwargs.get(_POSITIONS)
        if given is None and _POSITIONS not in self.held:
            given = (columns_of(batch) or {}).get(_POSITIONS)
        if isinstance(given, Tensor) and not _counts_tokens(given, call.kwargs.get(MASK)):
            raise ValueError(self._new(_POSITIONS))

    def _new(self, name: str) -> str:
        return (
            f"CachedTeacher: the fit has an input {name!r}, which the teacher takes, but {self.folder!r} was written "
            "without it, so what the teacher would say of it is not known. Write the store anew of batches that have "
            "it, or take it out of the batch."
        )

    def _default(self, name: str) -> Any:
        """Return what a teacher has that is not given an option."""
        assert self.takes is not None, "checked by the caller"
        defaults, named = self.takes["defaults"], self._other(name) if name.isdigit() else name
        if named in defaults:
            return defaults[named]
        return _ABSENT if named in self.takes["named"] else None

    def _new_options(self, call: Call, batch: Any, names: Mapping[str, str]) -> list[tuple[str, Any]]:
        """Refuse inputs that the teacher would take and did not have; one that is its default is as if left out."""
        assert self.takes is not None, "checked by the caller"
        columns = _named(batch)
        of_call = leaves_of_call(call.args, call.kwargs)
        found = []
        for name, value in {**leaves_of_call((), columns), **of_call}.items():
            known = {name, names.get(name, name), self._other(name)}
            top = name.partition(".")[0]
            named = self._other(top) if top.isdigit() else top
            if known & {*self.inputs, *self.options} or is_answer_or_row(top) or top.startswith(_OWN_COLUMNS):
                continue
            of_every = self.takes["every"] and not top.isdigit() and (name in of_call or isinstance(value, Tensor))
            if not of_every and named not in self.takes["named"]:
                continue
            if named == _POSITIONS:
                continue
            if named.startswith("decoder_") and any(is_answer_or_row(one) for one in self.inputs):
                continue  # made of the labels, which are compared
            if name not in of_call and (top.isdigit() or top in self.held):
                continue
            default = self._default(named)
            if plain_option(value) is NO_OPTION or default is _ABSENT or not same_option(value, default):
                raise ValueError(self._new(named))
            found.append((name, default))
        return found

    def _refuse(self, name: str, wanted: Any, value: Any) -> None:
        has = "does not give it" if value is _ABSENT else f"has {plain_or_kind(value)}"
        raise ValueError(
            f"CachedTeacher: the answers in {self.folder!r} are of a teacher with {name}={wanted!r} for the whole "
            f"batch, but the fit {has}. Give the student's batch the same, or write the store anew, one for each value."
        )


def plain_or_kind(value: Any) -> str:
    """Return an option in words."""
    plain = plain_option(value)
    return f"a {type(value).__name__}" if plain is NO_OPTION else repr(plain)


def _named(batch: Any) -> Mapping[str, Any]:
    """Return what a batch holds, by the names that inputs have: columns, or positions of a tuple of inputs."""
    columns = columns_of(batch)
    if columns is not None:
        return columns
    inputs = batch[0] if isinstance(batch, tuple | list) and batch else None
    return {str(i): value for i, value in enumerate(inputs)} if isinstance(inputs, tuple | list) else {}


def _is_padded(value: Any, mask: Any) -> bool:
    """Whether an input may be padded as no mask says, so that its contents depend on the batch."""
    if not isinstance(value, Tensor) or value.ndim < 2 or value.is_floating_point():
        return False
    return not isinstance(mask, Tensor) or value.shape[:2] != mask.shape


def _counted_positions(call: Call) -> Tensor:
    """Return the positions that a network counts itself, where it is not given them."""
    mask = call.kwargs.get(MASK)
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return positions_of(mask)
    ids = next(value for value in (*call.args, *call.kwargs.values()) if isinstance(value, Tensor))
    return torch.arange(ids.shape[1] if ids.ndim > 1 else 1, device=ids.device).expand(len(ids), -1)


def _counts_tokens(positions: Tensor, mask: Any) -> bool:
    """Whether positions count the tokens that a mask shows, from 0."""
    if not isinstance(mask, Tensor) or mask.shape != positions.shape:
        counted = torch.arange(positions.shape[-1], device=positions.device).expand_as(positions)
        return positions.ndim <= 2 and torch.equal(positions, counted.to(positions))
    shown = mask.bool()
    return torch.equal(positions[shown], positions_of(mask).to(positions)[shown])
