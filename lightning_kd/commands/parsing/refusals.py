"""Tell a refusal, which is written for the user, from an error that nobody foresaw and that needs its traceback."""

import linecache
import traceback
from pathlib import Path

import jsonargparse
import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException

import lightning_kd

_OURS = Path(lightning_kd.__file__).parent
_LIGHTNING = Path(lightning.__file__).parent
_PARSER = Path(jsonargparse.__file__).parent


def refusal(error: BaseException) -> str | None:
    """Return what to tell the user, or ``None`` if the error needs its traceback.

    A refusal is an exception that this package raises by a ``raise`` of its own, or Lightning's own word for an option
    that it does not know or a checkpoint that is not there. An error that happens in a line of this package, such as an
    ``IndexError``, is none. The parser wraps what a class raises while it is made, so its causes are looked at too.

    Args:
        error: What a command has raised.
    """
    cause: BaseException | None = error
    while isinstance(cause, Exception):
        frame = traceback.extract_tb(cause.__traceback__)[-1]
        line = linecache.getline(frame.filename, frame.lineno or 0).strip()
        is_ours = _OURS in Path(frame.filename).parents
        is_lightnings = _LIGHTNING in Path(frame.filename).parents and isinstance(cause, ValueError | FileNotFoundError)
        is_raised = line.startswith("raise ")
        if isinstance(cause, MisconfigurationException) or (is_raised and (is_ours or is_lightnings)):
            return str(cause)
        if _PARSER not in Path(frame.filename).parents:
            return None
        told = [said for other in _of_union(cause) if other is not cause.__cause__ and (said := refusal(other))]
        if told:
            return told[0]
        cause = cause.__cause__
    return None


def _of_union(error: BaseException) -> list[Exception]:
    """Return what went wrong with each type that a value may be of; jsonargparse 4.53 names the first as cause."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    found = None if place is None else place.tb_frame.f_locals.get("exceptions")
    return [one for one in found if isinstance(one, Exception)] if isinstance(found, list) else []
