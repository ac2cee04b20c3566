"""The student alone, as a file that needs nothing of this package: no hooks, no projectors, no teacher."""

import io
import itertools
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_kd.capture.example import Example
from lightning_kd.capture.networks import original, plain_name
from lightning_kd.distributed.gather import default_store, is_distributed
from lightning_kd.distributed.whole_state import is_sharded, whole_state
from lightning_kd.export.program import make_program, onnx_bytes
from lightning_kd.files.atomic import atomic_write
from lightning_kd.files.integrity import with_checksums
from lightning_kd.files.precision import Precision, dtype_of
from lightning_kd.files.reading import load_plain

Format = Literal["state_dict", "safetensors", "torch.export", "onnx"]
ENDINGS: dict[str, Format] = {
    ".pt": "state_dict",
    ".pth": "state_dict",
    ".safetensors": "safetensors",
    ".pt2": "torch.export",
    ".onnx": "onnx",
}
_LONGEST = timedelta(minutes=30)
_exports = itertools.count()


def export_student(
    student: nn.Module,
    path: str | os.PathLike[str],
    format: Format | None = None,  # noqa: A002  the option's public name; the builtin is not needed here
    *,
    dtype: Precision | torch.dtype | None = None,
    example: Example | None = None,
    dynamic_batch: bool = True,
) -> None:
    """Write a module as a file of its own, as it is in eval mode; the module itself is not changed.

    ============== ==================== ============================================================
    format         ending               read by
    ============== ==================== ============================================================
    state_dict     .pt, .pth            ``model.load_state_dict(torch.load(path, weights_only=True))``
    safetensors    .safetensors         ``model.load_state_dict(safetensors.torch.load_file(path))``
    torch.export   .pt2                 ``torch.export.load(path).module()``, without the model's code
    onnx           .onnx                any ONNX runtime; takes ``pip install "lightning_kd[onnx]"``
    ============== ==================== ============================================================

    Weights have the keys of the plain module, strictly, whether it is compiled or not. A program takes any batch size,
    the other sizes are those of the example; what the module returns as an object of its own is a dictionary of the
    object's fields there, and it names no path of the machine and no line of the source. The file has its name only
    when it is whole. In a distributed run every process may call this: the first one writes, the others wait for it.

    Args:
        student: The module, on any device, in any mode, compiled or not.
        path: File to write.
        format: What to write; by default the ending of the path decides.
        dtype: Format of the weights, and of a program's floating inputs; by default the module's own.
        example: Inputs to make a program with: a tensor, a tuple of positional inputs, a dictionary of named ones, or
            a Batch for both. A ``.pt2`` keeps their values.
        dynamic_batch: Whether a program takes any batch size, counted by the first size of the first tensor.

    Raises:
        ValueError: If the format is unknown or contradicts the ending, or a program lacks an example or cannot be
            made.
        ImportError: If ONNX is asked for and not installed.

    Example:
        >>> import tempfile
        >>> student = nn.Linear(2, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_student(student, f"{folder}/student.pt2", example=torch.zeros(2, 2))
        ...     program = torch.export.load(f"{folder}/student.pt2").module()
        >>> torch.equal(program(torch.ones(5, 2)), student(torch.ones(5, 2)))
        True
    """
    path, number = Path(path), dtype_of(dtype)
    chosen = choose_format(path, format)
    if chosen in ("state_dict", "safetensors"):
        write_weights(whole_state(original(student)), path, chosen, dtype=number)
        return
    if example is None:
        raise ValueError(
            f"Cannot make {str(path)!r} without inputs of the student: pass example=, one batch of them: a tensor, a "
            "tuple of positional inputs or a dictionary of named ones."
        )
    if is_sharded(student):
        raise ValueError(
            f"Cannot make {str(path)!r} of a student that is spread over processes; write its weights, and make the "
            "program of a plain student that has loaded them."
        )
    _in_first_process(partial(_write_program, student, path, chosen, number, example, dynamic_batch))


def choose_format(path: Path, asked: str | None) -> Format:
    """Return the format that was asked for, or that belongs to the ending of the path.

    Raises:
        ValueError: If there is neither, or they contradict each other.
    """
    known = f"{', '.join(list(ENDINGS)[:-1])} or {list(ENDINGS)[-1]}"
    of_ending = ENDINGS.get(path.suffix)
    if asked is None:
        if of_ending is None:
            raise ValueError(f"Cannot tell the format of {str(path)!r}; end it in {known}, or pass format=.")
        return of_ending
    if asked not in ENDINGS.values():
        raise ValueError(f"Expected format to be one of {', '.join(dict.fromkeys(ENDINGS.values()))}, got {asked!r}.")
    chosen = cast(Format, asked)
    if of_ending is not None and of_ending != chosen:
        fitting = " or ".join(ending for ending, of in ENDINGS.items() if of == chosen)
        raise ValueError(
            f"{str(path)!r} ends as a file of the format {of_ending}, but format is {chosen!r}; end it in {fitting}, "
            "or leave format out."
        )
    return chosen


def write_weights(state: Mapping[str, Any], path: Path, chosen: Format, *, dtype: torch.dtype | None = None) -> None:
    """Write a state dict as a file, under the names of the plain module.

    Args:
        state: The state dict, of a compiled module or not.
        path: File to write.
        chosen: ``"safetensors"``, or ``"state_dict"`` for ``torch.save``.
        dtype: Format to cast floating values to.

    Raises:
        ValueError: If the format cannot hold a value.
    """
    _in_first_process(partial(_write_weights, state, path, chosen, dtype))


def _write_weights(state: Mapping[str, Any], path: Path, chosen: Format, dtype: torch.dtype | None) -> None:
    copies: dict[object, Tensor] = {}
    plain: dict[str, Any] = {}
    for key, value in state.items():
        name = plain_name(key)
        if not isinstance(value, Tensor):
            _check_extra(name, value, chosen)
            plain[name] = value
            continue
        if is_lazy(value) or value.is_meta:
            raise ValueError(f"The student's {name!r} has no values yet; call the student once before it is exported.")
        # a state dict holds tied weights as one tensor under two names; safetensors cannot, so each name gets a copy
        same = name if chosen == "safetensors" else (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if same not in copies:
            to = dtype if value.is_floating_point() else None
            copies[same] = value.detach().to("cpu", to, copy=True).contiguous()
        plain[name] = copies[same]
    with atomic_write(path) as file:
        if chosen == "safetensors":
            for piece in with_checksums(safetensors.torch.save(plain, metadata={"format": "pt"})):
                file.write(piece)
        else:
            torch.save(plain, file)


def _check_extra(name: str, value: object, chosen: Format) -> None:
    """Raise a ``ValueError`` if a value of ``get_extra_state``, which is no tensor, could not be read back."""
    if chosen == "safetensors":
        raise ValueError(f"The student's {name!r} is no tensor, which safetensors cannot hold; write a .pt file.")
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    try:
        load_plain(file)
    except ValueError as error:
        raise ValueError(
            f"The student's {name!r} is not plain data, so weights_only=True would not load it; return plain data from "
            "get_extra_state."
        ) from error


def _write_program(
    student: nn.Module, path: Path, chosen: Format, dtype: torch.dtype | None, example: Example, dynamic_batch: bool
) -> None:
    program = make_program(student, example, dtype=dtype, dynamic_batch=dynamic_batch)
    with atomic_write(path) as file:
        if chosen == "onnx":
            file.write(onnx_bytes(program))
        else:
            # on a full disk torch 2.10 to 2.14 raises, and ends the process when its unfinished writer is collected
            whole = io.BytesIO()
            torch.export.save(program, whole)
            file.write(whole.getbuffer())


def _in_first_process(write: Callable[[], None]) -> None:
    """Let the first process of a run write, and the others wait for it.

    They wait for a key in the store of the run. A collective call would block the first process for ever if a user
    exports in that process only.
    """
    if not is_distributed():
        write()
        return
    store, key = default_store(), f"lightning_kd/export/{next(_exports)}"
    if dist.get_rank() > 0:
        store.wait([key], _LONGEST)
        if failure := store.get(key).decode():
            raise RuntimeError(f"The first process could not export the student. {failure}")
        return
    failure = "It was interrupted."
    try:
        write()
        failure = ""
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
        raise
    finally:
        store.set(key, failure)
