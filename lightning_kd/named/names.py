"""Names of networks: a library and what it calls the network."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

Library = Literal["timm", "torchvision", "hf"]

_FORMS = "'timm:resnet18', 'torchvision:resnet18' or 'hf:FOLDER'"


class Name(NamedTuple):
    """A library and the name of a network in it."""

    library: Library
    network: str

    def __str__(self) -> str:
        return f"{self.library}:{self.network}"


def parse(text: str) -> Name:
    """Take a name apart.

    Args:
        text: Such as ``timm:vit_small_patch16_224``, ``torchvision:resnet50`` or ``hf:runs/teacher``.

    Raises:
        ValueError: If it has another form.

    Example:
        >>> parse("timm:hf-hub:someone/network").network
        'hf-hub:someone/network'
        >>> parse("tim:resnet18")
        Traceback (most recent call last):
        ...
        ValueError: 'tim:resnet18' names no network. Did you mean 'timm:resnet18'?
    """
    library, colon, network = text.partition(":")
    if colon and library in get_args(Library) and network:
        return Name(cast(Library, library), network)
    near = difflib.get_close_matches(library.lower(), get_args(Library), n=1) if colon and network else []
    if near:
        hint = f"Did you mean '{near[0]}:{network}'?"
    elif (Path(text).expanduser() / "config.json").is_file():
        hint = f"Did you mean 'hf:{text}'?"
    else:
        hint = f"Expected such as {_FORMS}; or give a network that you have built."
    raise ValueError(f"{text!r} names no network. {hint}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a message that shows the names nearest to one that there is not; ``""`` if none is near.

    Example:
        >>> nearest("resnet19", ["resnet18", "vgg11"])
        " Did you mean 'resnet18'?"
    """
    near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
