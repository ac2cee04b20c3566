"""The student alone, as a file that a plain model loads: no hooks, no projectors, no teacher."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_kd.teachers.checkpoint import read_weights

_COMPILED = "_orig_mod."


def export_student(student: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a module's weights under its own key names.

    Args:
        student: The module, compiled or not.
        path: File to write: ``.safetensors``, or ``.pt`` or ``.pth`` for ``torch.save`` of the state dict.

    Raises:
        ValueError: If the file name ends otherwise.

    Example:
        >>> import tempfile
        >>> from lightning_kd.teachers import from_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_student(nn.Linear(2, 1), f"{folder}/student.safetensors")
        ...     from_checkpoint(nn.Linear(2, 1), f"{folder}/student.safetensors")
        Linear(in_features=2, out_features=1, bias=True)
    """
    _write(student.state_dict(), path)


def export_checkpoint(checkpoint: str, output: str, prefix: str = "student.") -> None:
    """Write the student inside a Lightning checkpoint as a file of its own.

    Args:
        checkpoint: The checkpoint that a fit of a DistillationModule has written.
        output: File to write: .safetensors, or .pt or .pth for a plain state dict.
        prefix: What the student's keys begin with; for a module of your own, the name of the student in it.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If no key begins with the prefix, or the output's name ends otherwise.
    """
    _write(read_weights(checkpoint, prefix), output)


def _write(state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    path = Path(path)
    plain = {name.replace(_COMPILED, ""): value.detach().cpu().contiguous() for name, value in state.items()}
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise ValueError(f"Cannot tell the format of {str(path)!r}; end it in .safetensors, .pt or .pth.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({name: value.clone() for name, value in plain.items()}, path)
    else:
        torch.save(plain, path)
