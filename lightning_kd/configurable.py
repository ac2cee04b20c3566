"""Parts that can be written down as plain data and made again from it, without running code from a file."""

import inspect
import sys
from collections.abc import Mapping, Sequence

_PACKAGE = f"{__package__}."


class Configurable:
    """A part whose constructor arguments are attributes of the same name, so that it can be written as plain data.

    Example:
        >>> class Scale(Configurable):
        ...     def __init__(self, factor: float = 1.0) -> None:
        ...         self.factor = factor
        >>> Scale(3.0).options()
        {'factor': 3.0}
        >>> restore({"class_path": f"{Scale.__module__}.Scale", "init_args": {"factor": 2.0}}, Configurable).factor
        2.0
    """

    def options(self) -> dict[str, object]:
        """Return the constructor's arguments as plain data: numbers, strings, lists and dictionaries."""
        cls = type(self)
        return {name: _plain(getattr(self, name), cls, name) for name in inspect.signature(cls).parameters}


def describe(part: Configurable) -> dict[str, object]:
    """Write a part as ``{"class_path": ..., "init_args": {...}}`` of plain data, read back by :func:`restore`.

    Args:
        part: The part; it is described as it was constructed, without sizes and weights that it got later.

    Raises:
        TypeError: If one of its arguments is neither plain data nor itself a part.
    """
    return {"class_path": _path(type(part)), "init_args": part.options()}


def restore(description: Mapping[str, object], base: type[Configurable]) -> Configurable:
    """Make the part that :func:`describe` wrote.

    Only classes that are already imported and derive from ``base`` are made: reading a description from a file can
    import and call nothing else.

    Args:
        description: What :func:`describe` returned.
        base: The class that the part must derive from.

    Raises:
        ValueError: If no imported subclass of ``base`` has that path.
    """
    path = description["class_path"]
    known = {name: cls for cls in _subclasses(base) for name in _paths(cls)}
    if str(path).startswith(_PACKAGE):  # older checkpoints name the file of a class, which may have moved
        path = f"{_PACKAGE}{str(path).rpartition('.')[2]}"
    if path not in known:
        raise ValueError(
            f"The checkpoint names the class {description['class_path']!r}, which is not an imported {base.__name__}; "
            "import the module that defines it first, or pass the part yourself."
        )
    init_args = description["init_args"]
    if not isinstance(init_args, Mapping):
        raise ValueError(f"The description of {path!r} has no mapping 'init_args', got {init_args!r}.")
    return known[str(path)](**{name: _part(value) for name, value in init_args.items()})


def _path(cls: type) -> str:
    """Return the path by which users import a class.

    For a class of this package that is the folder whose ``__init__`` exports it, not the file that defines it. A
    checkpoint then stays readable when a class moves to another file.
    """
    names = cls.__module__.split(".")
    if cls.__module__.startswith(_PACKAGE) and "." not in cls.__qualname__:
        for i in range(2, len(names)):
            package = ".".join(names[:i])
            if getattr(sys.modules.get(package), cls.__name__, None) is cls:
                return f"{package}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def _paths(cls: type) -> list[str]:
    """Return the paths by which a description may name a class; a class of this package is found by its name alone."""
    by_name = [f"{_PACKAGE}{cls.__name__}"] if cls.__module__.startswith(_PACKAGE) else []
    return [_path(cls), *by_name]


def _subclasses(base: type[Configurable]) -> set[type[Configurable]]:
    direct = set(base.__subclasses__())
    return direct.union(*(_subclasses(cls) for cls in direct))


def _plain(value: object, owner: type, name: str) -> object:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Configurable):
        return describe(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v, owner, name) for k, v in value.items()}
    if isinstance(value, Sequence):
        return [_plain(v, owner, name) for v in value]
    raise TypeError(
        f"{owner.__name__}: argument {name!r} is a {type(value).__name__}; "
        "expected plain data or a Configurable, so that a checkpoint can hold it."
    )


def _part(value: object) -> object:
    if isinstance(value, Mapping):
        if set(value) == {"class_path", "init_args"}:
            return restore(value, Configurable)
        return {k: _part(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_part(v) for v in value]
    return value
