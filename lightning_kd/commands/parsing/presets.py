"""Published recipes by name: ``--config preset:NAME`` is a file of this package."""

import difflib
from collections.abc import Sequence
from pathlib import Path

import lightning_kd

PREFIX = "preset:"
FOLDER = Path(lightning_kd.__file__).parent / "presets"
_OPTIONS = ("-c", "--config")


def names() -> list[str]:
    """Return the names of the recipes.

    Example:
        >>> names()
        ['deit', 'distilbert', 'minilm', 'tinybert']
    """
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def path_of(name: str) -> Path:
    """Return the file of a recipe.

    Raises:
        ValueError: If there is none of that name; names the nearest and all.
    """
    if name not in names():
        nearest = difflib.get_close_matches(name, names(), n=1)
        hint = f" Did you mean {PREFIX}{nearest[0]}?" if nearest else ""
        raise ValueError(f"there is no preset {name!r}.{hint} There are {', '.join(names())}.")
    return FOLDER / f"{name}.yaml"


def with_presets(words: Sequence[str]) -> list[str]:
    """Return the words of a command with files in the place of ``preset:NAME``, wherever a configuration is named.

    Raises:
        ValueError: If there is no recipe of that name.

    Example:
        >>> with_presets(["fit", "--config=preset:deit", "--config", "my.yaml"])
        ['fit', '--config=...deit.yaml', '--config', 'my.yaml']
    """
    found, before = [], ""
    for word in words:
        start, prefix, name = word.partition(PREFIX)
        is_value = start == "" and before in _OPTIONS
        is_both = start in (*(f"{option}=" for option in _OPTIONS), "-c")
        found.append(f"{start}{path_of(name)}" if prefix and (is_value or is_both) else word)
        before = word
    return found
