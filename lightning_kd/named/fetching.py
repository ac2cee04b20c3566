"""The one place where pretrained weights are loaded, out of a library's cache or from its server."""

import re
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from lightning_kd.named.names import Library, Name

Loaded = TypeVar("Loaded")

_SHOWN = 200
"""Letters of another library's message that are shown."""
_MODULES = {"timm": "timm", "torchvision": "torchvision", "hf": "transformers"}


def import_library(library: Library) -> Any:
    """Import the library of a name, or raise an ``ImportError`` that names the extra."""
    try:
        return import_module(_MODULES[library])
    except ImportError as error:
        raise ImportError(
            f"{library}:... takes a network from {_MODULES[library]}, which cannot be imported ({_line(error)}): "
            f"pip install 'lightning_kd[{library}]'."
        ) from None


def fetched(name: Name, load: Callable[[], Loaded], by_hand: str, cache: str, more: str = "") -> Loaded:
    """Return what a library loads, or say in a line why it does not.

    Args:
        name: The network.
        load: Loads it.
        by_hand: A line of Python that loads the same on a machine with a network.
        cache: The folder in which the library keeps what it has loaded.
        more: What is said besides where a server was asked in vain.

    Raises:
        RuntimeError: If it cannot be loaded.
    """
    try:
        return load()
    except OSError as error:  # what the libraries raise without a connection, and for a name that a server lacks
        raise RuntimeError(
            f"{name} could not be loaded: {_line(error)}{more} Where there is a connection, run: python -c {by_hand!r}."
            f" Then copy {cache} to this machine."
        ) from None
    except Exception as error:  # a broken file, weights of another network: each library has errors of its own
        raise RuntimeError(
            f"{name} could not be loaded: {_line(error)} If its file is broken, delete it in {cache}. Or build the "
            "network yourself, and give that."
        ) from None


def _line(error: Exception) -> str:
    """Return the first sentence of what an error says, in one line."""
    said = re.split(r"(?<=[.!?]) ", " ".join(str(error).split()))[0] or type(error).__name__
    said = said if len(said) <= _SHOWN else f"{said[:_SHOWN]} ..."
    return said if said.endswith((".", "!", "?")) else f"{said}."
