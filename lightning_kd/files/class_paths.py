"""Check that each class path of a configuration leads to what its place expects, before anything is called."""

import functools
import inspect
import sys
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from jsonargparse import Namespace
from torch import Tensor

_PLAIN = (bool, int, float, complex, str, bytes, type(None), Tensor)
"""Types of values, not of parts: a hint that is one of them names no class that a class path may lead to."""
_HARMLESS = frozenset({"collections", "datetime", "decimal", "fractions", "pathlib"})
"""Modules of the standard library whose classes only hold a value."""
_NO_KIND = frozenset({"builtins", "collections", "collections.abc", "typing", "typing_extensions"})
"""Modules of type hints that name no class of a part: containers such as ``list``, and ``Any`` or ``object``."""
_FUNCTIONS = get_origin(Callable[..., Any])


def check_arguments(made: Callable[..., Any], arguments: Mapping[str, Any], place: str) -> None:
    """Check the arguments that a configuration gives to a class or function; see :func:`check_value`.

    Args:
        made: The class or function.
        arguments: Its arguments by name, as a configuration parser or a checkpoint gives them.
        place: Where they stand, for the message; ``""`` for the top.
    """
    for name, value in arguments.items():
        check_value(value, _hint_of(made, name), f"{place}.{name}" if place else name)


def check_value(value: Any, hint: Any, place: str) -> None:
    """Check that every class path in a value leads to what its place expects. Nothing is imported or called.

    A class must be of the kind that the type hint names. A function must be annotated to return that kind. Where the
    hint names no kind, nothing of the standard library is accepted, since it has functions and classes that run
    commands.

    Args:
        value: Plain data with ``class_path`` and ``init_args``, lists and dictionaries of them, or functions.
        hint: What the place expects, such as ``nn.Module`` or ``Callable[[Iterable], Optimizer]``.
        place: Where the value stands, for the message.

    Raises:
        ValueError: If a class path leads to something else; the message names the path and the place.

    Example:
        >>> from torch import nn
        >>> check_value({"class_path": "torch.nn.Linear", "init_args": {"in_features": 2}}, nn.Module, "model.student")
        >>> check_value({"class_path": "os.system", "init_args": {"command": "ls"}}, nn.Module, "model.student")
        Traceback (most recent call last):
        ...
        ValueError: Parser key "model.student": 'os.system' is not what is expected here: ...
    """
    value = _as_mapping(value)
    if isinstance(value, Mapping):
        if isinstance(value.get("class_path"), str):
            _check_made(value, hint, place)
            return
        for name, item in value.items():
            check_value(item, hint, f"{place}.{name}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            check_value(item, hint, f"{place}.{i}")
    elif isinstance(value, str):
        found = _find(value) if _takes_functions(hint) and "." in value else None
        if callable(found):
            _check_handed_on(found, value, hint, place)
    elif callable(value):
        _check_handed_on(value, _path_of(value), hint, place)


def _check_made(described: Mapping[str, Any], hint: Any, place: str) -> None:
    """Check a class or function that is called with the arguments that the configuration gives."""
    path = described["class_path"]
    found = _find(path)
    if found is None and "." not in path:
        return  # a short name: jsonargparse looks it up among the subclasses of the expected class only
    made = found if inspect.isclass(found) else _returned(found)
    kinds, is_open = _kinds(hint)
    if not (_derives(made, kinds) or (is_open and inspect.isclass(made) and not _is_of_python(found))):
        raise _refusal(path, place, kinds)
    for arguments in (described.get("init_args"), described.get("dict_kwargs")):
        if arguments:
            check_arguments(
                found, arguments if isinstance(arguments, Mapping) else vars(arguments), f"{place}.init_args"
            )


def _check_handed_on(value: Any, path: str, hint: Any, place: str) -> None:
    """Check a function, class or object that is handed on as it is, and called later if at all."""
    kinds, is_open = _kinds(hint)
    made = value if inspect.isclass(value) else _returned(value)
    fits = isinstance(value, kinds) or _derives(made, kinds) or (is_open and not _is_of_python(value))
    if not fits:
        raise _refusal(path, place, kinds)


def _refusal(path: str, place: str, kinds: tuple[type, ...]) -> ValueError:
    if kinds:
        named = " or ".join(_path_of(kind) for kind in kinds)
        expected = f"a class that derives from {named}, or a function that is annotated to return one"
    else:
        expected = (
            "a class, or a function that is annotated to return one, of an installed package or of your own, but "
            "nothing of Python's standard library. A type annotation of this argument would say what it takes"
        )
    return ValueError(f'Parser key "{place}": {path!r} is not what is expected here: {expected}.')


def _kinds(hint: Any) -> tuple[tuple[type, ...], bool]:
    """Return the classes that a type hint names, and whether it also admits what it does not name."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal or hint is None or hint in _PLAIN:
        return (), hint is Tensor
    if origin is Annotated:
        return _kinds(args[0])
    if origin is _FUNCTIONS:
        kinds, is_open = _kinds(args[-1]) if args else ((), True)
        return kinds, is_open or not kinds
    if args and (origin in (Union, types.UnionType) or origin.__module__ in _NO_KIND):
        parts = [_kinds(arg) for arg in args if arg is not Ellipsis]
        return tuple(dict.fromkeys(kind for kinds, _ in parts for kind in kinds)), any(is_open for _, is_open in parts)
    named = origin or hint
    is_protocol = getattr(named, "_is_protocol", False)  # typing.is_protocol comes with Python 3.13
    if not inspect.isclass(named) or named.__module__ in _NO_KIND or is_protocol:
        return (), True
    return (named,), False


def _takes_functions(hint: Any) -> bool:
    return hint is Any or _FUNCTIONS in (hint, get_origin(hint)) or any(map(_takes_functions, get_args(hint)))


def _derives(made: Any, kinds: tuple[type, ...]) -> bool:
    return inspect.isclass(made) and issubclass(made, kinds)


def _is_of_python(thing: Any) -> bool:
    """Whether something is defined in Python's standard library, also if another module has imported it."""
    if isinstance(thing, functools.partial):
        return _is_of_python(thing.func)
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    owner = getattr(named, "__module__", None) or getattr(named, "__self__", None) or ""
    name = owner if isinstance(owner, str) else getattr(owner, "__module__", None) or getattr(owner, "__name__", "")
    top = str(name).partition(".")[0]
    return top in sys.stdlib_module_names and top not in _HARMLESS


@functools.cache
def _hints(function: Any) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except Exception:  # an annotation may fail in any way; most often its name is imported under TYPE_CHECKING only
        found = getattr(function, "__annotations__", {})
        return {name: hint for name, hint in found.items() if not isinstance(hint, str)}


def _hint_of(made: Any, name: str) -> Any:
    """Return the type hint of an argument; of a class, also where a base class takes it."""
    makers = [vars(cls).get("__init__") for cls in made.__mro__] if inspect.isclass(made) else [made]
    found = [_hints(maker) for maker in makers if inspect.isroutine(maker)]
    return next((hints[name] for hints in found if name in hints), Any)


def _returned(function: Any) -> Any:
    """Return what a function is annotated to return, ``None`` if it does not say."""
    if isinstance(function, functools.partial):
        return function.func if inspect.isclass(function.func) else _returned(function.func)
    returned = _hints(function).get("return") if inspect.isroutine(function) else None
    return None if returned is Any else get_origin(returned) or returned


def _find(path: str) -> Any:
    """Return what a dotted path leads to, of modules that are imported; ``None`` if it leads nowhere."""
    names = path.split(".")
    for i in range(len(names) - 1, 0, -1):
        found: Any = sys.modules.get(".".join(names[:i]))
        if found is not None:
            for name in names[i:]:
                found = getattr(found, name, None)
            return found
    return None


def _as_mapping(value: Any) -> Any:
    """Return the parser's own namespace as a mapping, anything else as it is."""
    return vars(value) if isinstance(value, Namespace) else value


def _path_of(thing: Any) -> str:
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{getattr(named, '__module__', None) or 'builtins'}.{named.__qualname__}"
