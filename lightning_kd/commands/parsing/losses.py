"""The losses on the command line and in YAML: by the names of strategies, and one option of one loss at a time."""

import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from lightning_kd.losses.base import DistillationLoss
from lightning_kd.losses.naming import names_after
from lightning_kd.losses.strategies import DistillationStrategyType

OPTION = "--model.losses"
_NAMING = {OPTION, f"{OPTION}+", f"{OPTION}.help"}
_OF_A_CLASS = {"class_path", "init_args", "dict_kwargs"}


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
    """Return a configuration whose losses are a list of classes, however they were named.

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
        if key in ("losses", "losses+"):
            changed[key] = by_class(value)
        elif isinstance(value, Mapping) and key in ("model", "fit", "validate", "test", "predict"):
            changed[key] = with_losses_by_class(value)
    return changed


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
        changed["init_args"] = with_losses_by_class(loss["init_args"])
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
    named = by_class(losses)
    return value if named == losses else yaml.safe_dump(named, default_flow_style=True, width=sys.maxsize).strip()


def options_of_one(words: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Take the options of one loss out of the words of a command.

    Args:
        words: Such as ``--model.losses.kd.temperature=2``; the loss is named as in :func:`class_named`, as it is logged
            if there are several of a class, or by its number, which begins at 0.

    Returns:
        The other words, and the options without ``--model.losses.``, with their values.

    Example:
        >>> options_of_one(["--config=a.yaml", "--model.losses.1.init_args.weight", "3", "--model.losses.weight=2"])
        (['--config=a.yaml', '--model.losses.weight=2'], [('1.init_args.weight', '3')])
    """
    others: list[str] = []
    taken: list[tuple[str, str]] = []
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        name, _, _ = option.removeprefix(f"{OPTION}.").partition(".")
        is_known = name.isdecimal() or class_named(name) or class_named(re.sub(r"_\d+$", "", name))
        if option.startswith(f"{OPTION}.") and is_known and not option.endswith(".help"):
            value = value if equals else next(rest, "--")
            if value.startswith("--"):
                raise ValueError(f"{option}: expected a value.")
            taken.append((option.removeprefix(f"{OPTION}."), value))
        else:
            others.append(word)
    return others, taken


def set_option(losses: Any, option: str, value: Any) -> None:
    """Set one option of one loss in a list of losses, each a class with its options; the others stay.

    Args:
        losses: Classes with ``init_args``, as a parsed configuration has them.
        option: Name or number of the loss and name of its option, as ``kd.temperature``, ``1.init_args.weight`` or
            ``hybrid.losses.kd.temperature``.
        value: The new value.

    Raises:
        ValueError: If there is no such loss, or nothing with options where the option leads.

    Example:
        >>> losses = [{"class_path": "lightning_kd.losses.KDLoss", "init_args": {"temperature": 4.0, "weight": 0.9}}]
        >>> set_option(losses, "RESPONSE_BASED.temperature", 2.0)
        >>> losses[0]["init_args"]
        {'temperature': 2.0, 'weight': 0.9}
    """
    name, _, option = option.partition(".")
    if not isinstance(losses, list) or not losses:
        raise ValueError(f"{OPTION}.{name}.{option}: there are no losses; name them first, in YAML or by {OPTION}.")
    options = losses[_find(losses, name)].setdefault("init_args", {})
    while True:
        key, _, option = option.removeprefix("init_args.").partition(".")
        if key in ("class_path", "dict_kwargs", ""):
            raise ValueError(f"{OPTION}.{name}: expected one option of this loss; another loss is named by {OPTION}.")
        if not option:
            options[key] = value
            break
        inner = options.get(key)
        if key == "losses":
            set_option(inner, option, value)
            break
        if isinstance(inner, str):
            inner = options[key] = {"class_path": inner}
        if not isinstance(inner, dict) or "class_path" not in inner:
            raise ValueError(
                f"{OPTION}.{name}: {key} is {inner!r} and has no option {option!r}; name a class for it first."
            )
        options = inner.setdefault("init_args", {})


def _find(losses: list[Any], name: str) -> int:
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
    raise ValueError(f"{OPTION}.{name}: {several} of this name; there are {there}.")
