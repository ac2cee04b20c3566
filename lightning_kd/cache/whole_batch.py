"""What a store says of inputs that are not of one sample, and of the inputs that a teacher takes."""

from collections.abc import Mapping
from typing import Any

from lightning_kd.capture.batch import Batch
from lightning_kd.capture.columns import columns_of, takes
from lightning_kd.capture.options import described_takes, leaves_of_call, options_of, same_option
from lightning_kd.teachers.frozen import FrozenTeacher


def what_it_takes(frozen: FrozenTeacher, *, by_function: bool) -> dict[str, Any]:
    """Return as plain data what a teacher takes.

    Args:
        frozen: The teacher.
        by_function: Whether a function of the user's makes its inputs, which may read all that a batch holds.
    """
    return {**described_takes(frozen.module), "by_function": by_function}


def names_in(batch: Any) -> list[str]:
    """Return the names of the columns of a batch."""
    return sorted(map(str, columns_of(batch) or ()))


def options_read(frozen: FrozenTeacher, read: Batch, *, by_function: bool) -> dict[str, Any]:
    """Return the inputs of a whole batch that a teacher may read, as plain data."""
    taken = takes(frozen.module)
    found = options_of(read.args, read.kwargs)
    tops = {name: name.partition(".")[0] for name in found}
    return {n: value for n, value in found.items() if by_function or tops[n].isdigit() or tops[n] in taken}


def check_options(wanted: Mapping[str, Any], found: Mapping[str, Any], read: Batch, rows: list[int]) -> None:
    """Raise a ``ValueError`` if the options of a batch are not those of the first one."""
    given = leaves_of_call(read.args, read.kwargs)
    for name in sorted({*wanted, *found}):
        if name not in wanted or name not in given or not same_option(given[name], wanted[name]):
            has, first = (repr(of[name]) if name in of else "none" for of in (found, wanted))
            raise ValueError(
                f"The batch of rows {rows[0]} to {rows[-1]} has the input {name!r} = {has} for the whole batch, but "
                f"the first batch has {first}. A store is of one value: give it to each sample "
                "as a number or a word of its own, write a store for each value, or, if the teacher does not read it, "
                "take it out of the batch."
            )
