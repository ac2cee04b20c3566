"""Files that somebody else may have written: read as tensors and plain data, never as code."""

import io
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import IO, Any

import torch
from lightning.fabric.utilities.cloud_io import get_filesystem

from lightning_kd.files.checkpoint import is_zip, named, reading
from lightning_kd.files.class_paths import check_arguments
from lightning_kd.files.integrity import check_records

OPTIONS_KEYS = ("hyper_parameters", "hparams", "module_arguments")
"""The keys under which Lightning, and its older versions, keep a module's constructor arguments in a checkpoint."""
_INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"


def load_plain(source: str | os.PathLike[str] | IO[bytes]) -> Any:
    """Read what ``torch.save`` has written, tensors and plain data only, onto the CPU.

    Args:
        source: A path, whose tensors are read when they are used, a URL, or an open file, whose position is restored.

    Raises:
        ValueError: If the file is damaged, or holds anything else; no code of it has run.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> torch.save({"epoch": 3}, file)
        >>> file.seek(0), load_plain(file)
        (0, {'epoch': 3})
        >>> torch.save(print, file)
        >>> file.seek(0)
        0
        >>> load_plain(file)
        Traceback (most recent call last):
        ...
        ValueError: An open file holds 'print', which is neither a tensor nor plain data ...
    """
    if not isinstance(source, str | os.PathLike):
        start = source.tell()
        try:
            return _load(source, source)
        finally:
            source.seek(start)
    if "://" in str(source):
        with get_filesystem(str(source)).open(str(source), "rb") as file:
            return _load(io.BytesIO(file.read()), source)  # read once: the checksums are looked at first
    return _load(source, source, mmap=is_zip(source) or None)


def check_class_names(
    checkpoint: Mapping[str, Any], source: object, given: Iterable[str] = (), made: type | None = None
) -> None:
    """Check that the options in a checkpoint import no module, and name no class of another kind than expected.

    Args:
        checkpoint: What :func:`load_plain` returned.
        source: The checkpoint's path, for the message.
        given: Names of options that do not come from the checkpoint.
        made: The class whose constructor gets the options; its type hints say what each option expects.

    Raises:
        ValueError: If an option names a class of a module that is not imported yet, or of another kind than expected.
    """
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{str(source)!r} is no checkpoint, but a {type(checkpoint).__name__}.")
    for key in OPTIONS_KEYS:
        options = {name: value for name, value in checkpoint.get(key, {}).items() if name not in set(given)}
        by_parser = "_instantiator" in options
        made_by = options.pop("_instantiator", _INSTANTIATOR)
        strange = [made_by] if made_by != _INSTANTIATOR else [text for text in _texts(options) if _would_import(text)]
        if strange:
            raise ValueError(
                f"{str(source)!r} names {strange[0]!r}, of a module that is not imported; nothing has been made. If "
                "you trust it, import that module first, or pass the object yourself; on the command line give the "
                "configuration, --config FIT.yaml."
            )
        if made is not None and by_parser:
            check_arguments(made, options, key)


def _load(file: Any, source: object, **options: Any) -> Any:
    with reading(source), warnings.catch_warnings():
        # torch warns of an unknown pickle protocol and then refuses the file; the error is enough
        warnings.filterwarnings("ignore", message="Detected pickle protocol")
        check_records(file, named(source))
        return torch.load(file, map_location="cpu", weights_only=True, **options)


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [text for item in value for text in _texts(item)] if isinstance(value, list | tuple) else []


def _would_import(path: str) -> bool:
    """Whether looking up a dotted name would import a module."""
    *modules, _ = path.split(".")
    if not all(name.isidentifier() for name in modules):
        return False
    for i in range(len(modules)):
        name, parent = ".".join(modules[: i + 1]), sys.modules.get(".".join(modules[:i]))
        if name in sys.modules:
            continue
        if parent is not None and hasattr(parent, modules[i]):  # a class inside a module
            return False
        return (i == 0 or hasattr(parent, "__path__")) and find_spec(name) is not None
    return False
