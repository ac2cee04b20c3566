"""The losses on the command line and in YAML: by the names of strategies, and one option of one loss at a time."""

import inspect
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import yaml

from lightning_kd.commands.parsing.messages import close
from lightning_kd.losses.base import DistillationLoss
from lightning_kd.losses.naming import names_after
from lightning_kd.losses.strategies import DistillationStrategyType

OPTION = "--model.losses"
_NAMING = {OPTION, f"{OPTION}+", f"{OPTION}.help"}
_OF_A_CLASS = {"class_path", "init_args", "dict_kwargs"}
_STUDENTS: ContextVar[Collection[str]] = ContextVar("students", default=())


def classes() -> dict[str, type[DistillationLoss]]:
    """Return the classes of losses that are imported, by their short names; a name that two have is left out."""
    found: dict[str, list[type[DistillationLoss]]] = {}
    for loss in dict.fromkeys(_below(DistillationLoss)):  # type: ignore[type-abstract]
        if not inspect.isabstract(loss) and not loss.__name__.startswith("_"):
            found.setdefault(loss.__name__, []).append(loss)
    return {name: same[0] for name, same in found.items() if len(same) == 1}


def _below(loss: type[DistillationLoss]) -> Iterator[type[DistillationLoss]]:
    for derived in loss.__subclasses__():
        yield derived
        yield from _below(derived)


def class_named(name: str) -> type[DistillationLoss] | None:
    """Return the class of losses that a name stands for: a strategy, a class, or what a class is logged as.

    Args:
        name: ``RESPONSE_BASED`` or ``response_based``, ``KDLoss``, or ``kd``.

    Example:
        >>> [class_named(name).__name__ for name in ("ATTENTION_BASED", "relation_based", "KDLoss", "mutual_learning")]
        ['ATLoss', 'RKDLoss', 'KDLoss', 'MutualLearning']
    """
    known = classes()
    if name in known:
        return known[name]
    if name.upper() in DistillationStrategyType.__members__:
        return DistillationStrategyType[name.upper()].component
    return next((loss for known_name, loss in known.items() if names_after([known_name]) == [name]), None)


def names() -> list[str]:
    """Return every name that stands for a loss: those of the classes, of the strategies, and what is logged."""
    return [*classes(), *DistillationStrategyType.__members__, *(names_after([name])[0] for name in classes())]


def overview() -> str:
    """Return the losses, one line each: the class, what it is logged as, and what it does."""
    strategies = {strategy.component: strategy.name for strategy in DistillationStrategyType}
    lines = ["Losses for `model.losses`. A strategy is another name of its loss; any case will do.", ""]
    lines += [f"  {'class':<20} {'strategy':<24} what it makes the student do"]
    for name, loss in sorted(classes().items(), key=lambda item: item[0].lower()):
        if loss.__module__.startswith("lightning_kd."):
            said = (inspect.getdoc(loss) or "").partition("\n")[0]
            lines.append(f"  {name:<20} {strategies.get(loss, ''):<24} {said}")
    return "\n".join(lines)


def with_losses_by_class(configuration: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a configuration whose losses are a list of classes, however they were named; or a list for each student.

    Args:
        configuration: The options of a command, of all commands by name, or of the module alone.

    Example:
        >>> with_losses_by_class({"fit": {"model": {"losses": {"kd": {"temperature": 2}, "ATTENTION_BASED": None}}}})
        {'fit': {'model': {'losses': [{'class_path': 'lightning_kd.losses.KDLoss', 'init_args': {'temperature': 2}},
                                      {'class_path': 'lightning_kd.losses.ATLoss',
                                       'init_args': {'transformers': True}}]}}}
    """
    changed = dict(configuration)
    for key, value in configuration.items():
        if key == "losses":
            changed[key] = by_class_of_each(value, configuration.get("students"))
        elif key == "losses+":
            changed[key] = by_class(value)
        elif isinstance(value, Mapping) and key in ("model", "fit", "validate", "test", "predict"):
            changed[key] = with_losses_by_class(value)
    return changed


@contextmanager
def students_known(names: Collection[str]) -> Iterator[None]:
    """Read losses by student inside the block: a file of losses need not be the one that names the students.

    Args:
        names: Names of the students, none if there is one.
    """
    token = _STUDENTS.set(names)
    try:
        yield
    finally:
        _STUDENTS.reset(token)


def by_class_of_each(losses: Any, students: object = ()) -> Any:
    """Return losses as :func:`by_class` does, or such a list for each student where they stand by student.

    A mapping is by student if its keys are students, if one of them is a student and names no loss, or if a value is a
    list, or has a ``class_path`` below a key that names no loss.

    Args:
        losses: As for :func:`by_class`, or a mapping of students to such.
        students: Names of the students in the same text, beside those of :func:`students_known`.

    Raises:
        ValueError: If a student has no list, or the options of a name are no mapping.

    Example:
        >>> by_class_of_each({"small": ["RESPONSE_BASED"], "tiny": {"class_path": "HintLoss"}})
        {'small': ['lightning_kd.losses.KDLoss'], 'tiny': [{'class_path': 'lightning_kd.losses.HintLoss'}]}
        >>> by_class_of_each({"small": "kd"}, ["small"]), by_class_of_each({"kd": None}, ["small"])
        ({'small': ['lightning_kd.losses.KDLoss']}, ['lightning_kd.losses.KDLoss'])
    """
    if not isinstance(losses, Mapping) or not losses or _OF_A_CLASS & set(losses):
        return by_class(losses)
    known = {*_STUDENTS.get(), *(students if isinstance(students, Mapping | list) else ())}
    of_loss = {name for name in losses if class_named(str(name)) is not None}
    others = [n for n, own in losses.items() if not isinstance(own, list) and not (_is_class(own) and n not in of_loss)]
    are_named = known >= set(losses) or bool(known & set(losses) - of_loss)
    if not are_named and (len(others) == len(losses) or of_loss & set(others)):
        return by_class(losses)
    return {name: _list_of(own, str(name)) for name, own in losses.items()}


def _list_of(losses: Any, student: str) -> list[Any]:
    """Return the losses of a student as a list."""
    named = by_class([losses] if _is_class(losses) else losses)
    if not isinstance(named, list):
        raise ValueError(
            f"losses: expected a list of losses for the student {student}, such as [KDLoss], got {losses!r}."
        )
    return named


def _is_class(loss: object) -> bool:
    return isinstance(loss, Mapping) and "class_path" in loss


def by_class(losses: Any) -> Any:
    """Return losses as a list of classes with their options; what is no name of a loss stays as it is.

    Args:
        losses: One name; a list of names, of classes with ``init_args``, or of ``{NAME: {OPTION: VALUE}}``; or
            ``{NAME: {OPTION: VALUE}}`` for all of them.

    Raises:
        ValueError: If the options of a name are no mapping.

    Example:
        >>> by_class(["RESPONSE_BASED", {"HintLoss": {"weight": 100}}])
        ['lightning_kd.losses.KDLoss', {'class_path': 'lightning_kd.losses.HintLoss', 'init_args': {'weight': 100}}]
    """
    if isinstance(losses, str) and losses.isidentifier():
        return [_loss(losses)]
    if isinstance(losses, Mapping) and not _OF_A_CLASS & set(losses):
        return [_loss({name: options}) for name, options in losses.items()]
    return [_loss(loss) for loss in losses] if isinstance(losses, Sequence) and not isinstance(losses, str) else losses


def _loss(loss: Any) -> Any:
    if isinstance(loss, str):
        defaults = _defaults(loss, {})
        return {"class_path": _path(loss), "init_args": defaults} if defaults else _path(loss)
    if not isinstance(loss, Mapping):
        return loss
    if len(loss) == 1 and not _OF_A_CLASS & set(loss):
        ((name, options),) = loss.items()
        if options is None:
            return _loss(str(name))
        if not isinstance(options, Mapping):
            raise ValueError(f"losses: expected the options of {name} as {{OPTION: VALUE, ...}}, got {options!r}.")
        given = options if _OF_A_CLASS & set(options) else {"init_args": options}
        loss = {"class_path": str(name), **given}
    changed = dict(loss)
    if isinstance(loss.get("class_path"), str):
        changed["class_path"] = _path(loss["class_path"])
    if isinstance(loss.get("init_args"), Mapping):
        options = dict(loss["init_args"])
        changed["init_args"] = {**options, "losses": by_class(options["losses"])} if "losses" in options else options
    defaults = _defaults(loss.get("class_path"), changed.get("init_args") or {})
    if defaults:
        changed["init_args"] = {**defaults, **(changed.get("init_args") or {})}
    return changed


def _defaults(name: object, options: Mapping[str, Any]) -> dict[str, object]:
    """Return what a strategy sets beside the options that it is given; nothing for the name of a class."""
    strategy = DistillationStrategyType.__members__.get(str(name).upper())
    return {} if strategy is None else strategy.defaults(options)


def _path(name: str) -> str:
    """Return the path of the class that a name stands for; a class of the user keeps its name, which is known too."""
    loss = class_named(name)
    return f"lightning_kd.losses.{loss.__name__}" if loss and loss.__module__.startswith("lightning_kd.") else name


def named_by_class(words: Sequence[str]) -> list[str]:
    """Return the words of a command with classes for the names of losses, also where their help is asked for.

    Args:
        words: The words, each option with its value in one word or in two.

    Example:
        >>> named_by_class(["--model.losses=response_based", "--model.losses.help", "RELATION_BASED"])
        ['--model.losses=[lightning_kd.losses.KDLoss]', '--model.losses.help', 'lightning_kd.losses.RKDLoss']
    """
    changed: list[str] = []
    option = ""
    for word in words:
        name, equals, value = word.partition("=")
        if name in _NAMING and equals:
            changed.append(f"{name}={_value_by_class(name, value)}")
        else:
            changed.append(_value_by_class(option, word) if option in _NAMING else word)
        option = word
    return changed


def _value_by_class(option: str, value: str) -> str:
    if option == f"{OPTION}.help":
        return _path(value)
    try:
        losses = yaml.safe_load(value)
    except yaml.YAMLError:  # the parser will say so
        return value
    named = by_class_of_each(losses) if option == OPTION else by_class(losses)
    return value if named == losses else yaml.safe_dump(named, default_flow_style=True, width=sys.maxsize).strip()


def options_of_one(words: Sequence[str], students: Collection[str] = ()) -> tuple[list[str], list[tuple[str, str]]]:
    """Take the options of one loss, and the losses of one student, out of the words of a command.

    Args:
        words: Such as ``--model.losses.kd.temperature=2``; the loss is named as in :func:`class_named`, as it is logged
            if there are several of a class, or by its number, which begins at 0. The name of a student may stand
            before it, or alone.
        students: Names of the students, if there are several.

    Returns:
        The other words, and the options without ``--model.losses.``, with their values.

    Example:
        >>> options_of_one(["--config=a.yaml", "--model.losses.1.init_args.weight", "3", "--model.losses.weight=2"])
        (['--config=a.yaml', '--model.losses.weight=2'], [('1.init_args.weight', '3')])
        >>> options_of_one(["--model.losses.tiny=[kd]", "--model.losses.small=[kd]"], students=["tiny"])
        (['--model.losses.small=[kd]'], [('tiny', '[kd]')])
    """
    others: list[str] = []
    taken: list[tuple[str, str]] = []
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        name, _, inner = option.removeprefix(f"{OPTION}.").partition(".")
        of_student = name.removesuffix("+") in students or (students and _is_loss(inner.partition(".")[0]))
        is_known = _is_loss(name) or of_student
        if option.startswith(f"{OPTION}.") and is_known and not option.endswith(".help"):
            value = value if equals else next(rest, "--")
            if value.startswith("--"):
                raise ValueError(f"{option}: expected a value.")
            taken.append((option.removeprefix(f"{OPTION}."), value))
        else:
            others.append(word)
    return others, taken


def _is_loss(name: str) -> bool:
    return name.isdecimal() or bool(class_named(name) or class_named(re.sub(r"_\d+$", "", name)))


def set_option(losses: Any, option: str, value: Any, students: Collection[str] = ()) -> None:
    """Set one option of one loss in a list of losses, each a class with its options; the others stay.

    Args:
        losses: Classes with ``init_args``, as a parsed configuration has them; or such a list for each student.
        option: Name or number of the loss and name of its option, as ``kd.temperature``, ``1.init_args.weight`` or
            ``hybrid.losses.kd.temperature``; after the name of a student if each has its own: ``tiny.kd.temperature``.
            The name alone stands for all losses of the student, ``tiny+`` for more of them.
        value: The new value.
        students: Names of the students, if there are several.

    Raises:
        ValueError: If there is no such loss or student, or nothing with options where the option leads.

    Example:
        >>> losses = [{"class_path": "lightning_kd.losses.KDLoss", "init_args": {"temperature": 4.0, "weight": 0.9}}]
        >>> set_option(losses, "RESPONSE_BASED.temperature", 2.0)
        >>> losses[0]["init_args"]
        {'temperature': 2.0, 'weight': 0.9}
    """
    name, _, rest = option.partition(".")
    student = name.removesuffix("+")
    if isinstance(losses, Mapping):
        if student not in losses:
            raise ValueError(f"{OPTION}.{option}: {_no_student(student, option, list(losses))}")
        if rest:
            _set_option(losses[student], rest, value, f"{OPTION}.{student}")
        else:
            _set_all(losses, name, value)
    elif student in students and not class_named(student):
        raise ValueError(
            f"{OPTION}.{option}: all students have the same losses; to give each its own, write "
            f"{OPTION}='{{{', '.join(f'{one}: [...]' for one in students)}}}'."
        )
    else:
        _set_option(losses, option, value, OPTION)


def _no_student(name: str, option: str, students: Sequence[str]) -> str:
    """Say that losses by student have none of a name."""
    if _is_loss(name):
        said = f"each student has its own losses; put the student first: {OPTION}.{students[0]}.{option}."
    else:
        nearest = close(name, students, 1)
        said = f"there is no student {name!r}.{f' Did you mean {nearest[0]!r}?' if nearest else ''}"
    return f"{said} The students are {', '.join(students)}."


def _set_all(losses: Any, student: str, value: Any) -> None:
    """Replace the losses of one student, or add to them."""
    named = _list_of(value, student.removesuffix("+"))
    specs = [{"class_path": one} if isinstance(one, str) else one for one in named]
    name = student.removesuffix("+")
    losses[name] = [*losses[name], *specs] if name != student else specs


def _set_option(losses: Any, option: str, value: Any, place: str) -> None:
    name, _, option = option.partition(".")
    if not isinstance(losses, list) or not losses:
        raise ValueError(f"{place}.{name}.{option}: there are no losses; name them first, in YAML or by {OPTION}.")
    options = losses[_find(losses, name, place)].setdefault("init_args", {})
    while True:
        key, _, option = option.removeprefix("init_args.").partition(".")
        if key in ("class_path", "dict_kwargs", ""):
            raise ValueError(f"{place}.{name}: expected one option of this loss; another loss is named by {OPTION}.")
        if not option:
            options[key] = value
            break
        inner = options.get(key)
        if key == "losses":
            _set_option(inner, option, value, place)
            break
        if isinstance(inner, str):
            inner = options[key] = {"class_path": inner}
        if not isinstance(inner, dict) or "class_path" not in inner:
            raise ValueError(
                f"{place}.{name}: {key} is {inner!r} and has no option {option!r}; name a class for it first."
            )
        options = inner.setdefault("init_args", {})


def _find(losses: list[Any], name: str, place: str) -> int:
    """Return the number of the loss that a name or number stands for."""
    paths = [loss["class_path"].rpartition(".")[2] for loss in losses]
    logged = names_after(paths)
    wanted = class_named(name)
    fits = [i for i, path in enumerate(paths) if wanted and path == wanted.__name__]
    if name in logged:
        return logged.index(name)
    if name.isdecimal() and int(name) < len(losses):
        return int(name)
    if len(fits) == 1:
        return fits[0]
    there = ", ".join(f"{found} ({i})" for i, found in enumerate(logged))
    several = "more than one loss" if fits else "no loss"
    raise ValueError(f"{place}.{name}: {several} of this name; there are {there}.")
