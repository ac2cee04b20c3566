"""A class that is named anew starts from its own defaults; jsonargparse would hand on what the class before it had."""

import inspect
import os
import pkgutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import yaml
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_kd.commands.parsing import yaml_text
from lightning_kd.commands.parsing.parser import Parser
from lightning_kd.commands.parsing.words import pairs
from lightning_kd.module import DistillationModule

OPTIONS = ("model.student", "model.teacher", "model.task_loss", "model.optimizer", "model.lr_scheduler", "data")
"""Options that take a class with options of its own."""
_STUDENTS = "model.students"


@dataclass
class Given:
    """What the words and files give for one option, in their order.

    Args:
        name: Short name of the class that was named last, or that is the default; ``None`` if there is none.
        options: Names of the options that were given for it.
        left: Options of the classes before it, as ``SGD.momentum``.
        is_renamed: Whether there was another class before it.
    """

    name: str | None = None
    options: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    is_renamed: bool = False

    def take(self, value: Any) -> None:
        """Take a class by name, a class with options, or options alone."""
        if isinstance(value, str):
            self._rename(value.rpartition(".")[2])
        elif isinstance(value, Mapping):
            if "class_path" in value:
                self._rename(str(value["class_path"]).rpartition(".")[2])
            options = value.get("init_args") if {"class_path", "init_args"} & set(value) else value
            self.options += list(options or {})

    def _rename(self, name: str) -> None:
        if self.name not in (None, name):
            self.is_renamed = True
            self.left += [f"{self.name}.{option}" for option in self.options]
            self.options = []
        self.name = name


class GivenLosses(Given):
    """What is given for the losses, each by its place; a list of the same length changes the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.items: list[Given] = []
        self.of_each: dict[str, GivenLosses] = {}
        """The same for each student, where each has its own losses."""

    def take(self, value: Any) -> None:
        """Take a list of classes, such a list for each student, or options of the last class."""
        if isinstance(value, list):
            self.of_each = {}
            if len(value) != len(self.items):
                self.items = [Given() for _ in value]
            for item, content in zip(self.items, value, strict=True):
                item.take(content)
        elif isinstance(value, Mapping) and value and all(isinstance(own, list) for own in value.values()):
            self.items = []
            self.of_each = {name: self.of_each.get(name, GivenLosses()) for name in value}
            for name, own in value.items():
                self.of_each[name].take(own)
        elif isinstance(value, Mapping) and self.items:
            self.items[-1].take(value)
        every = (*self.items, *self.of_each.values())
        self.is_renamed = any(item.is_renamed for item in every)

    def append(self, value: Any) -> None:
        """Take a class, or a list of them, after those that there are.

        Raises:
            ValueError: If each student has its own losses.
        """
        if self.of_each:
            names = list(self.of_each)
            raise ValueError(
                f"model.losses+: each of the students {names} has its own losses; say whose they are: "
                f"--model.losses.{names[0]}+=..., or give all of them by model.losses."
            )
        for content in value if isinstance(value, list) else [value]:
            self.items.append(Given())
            self.items[-1].take(content)

    def beside(self, losses: Any) -> Iterator[tuple[dict[str, Any], Given]]:
        """Yield each loss, as parsed, with what was given for it."""
        if isinstance(losses, Mapping):
            for name, own in losses.items():
                yield from self.of_each.get(name, GivenLosses()).beside(own)
        else:
            yield from zip(losses or [], self.items, strict=False)


def given(words: Sequence[str]) -> dict[str, Given]:
    """Return what the words of a command, and the files that they name, give for each option that takes a class.

    Args:
        words: The words, which the parser accepts.
    """
    default = inspect.signature(DistillationModule).parameters["optimizer"].default
    found = {option: Given(default.__name__ if option == "model.optimizer" else None) for option in OPTIONS}
    losses = found["model.losses"] = GivenLosses()
    for option, value in pairs(words):
        if option in ("-c", "--config"):
            _take_all(found, *_content(value, ""))
        elif option == "--model":
            content, folder = _content(value, "")
            _take_all(found, {"model": content}, folder)
        elif option == f"--{_STUDENTS}":
            content, folder = _content(value, "")
            _take_all(found, {"model": {"students": content}}, folder)
        elif option == "--model.losses+":
            losses.append(_content(value, "")[0])
        elif option.startswith(f"--{_STUDENTS}."):
            _know_students(found, [option.removeprefix(f"--{_STUDENTS}.").partition(".")[0]])
        for name in found:
            key = option.removeprefix(f"--{name}").removeprefix(".init_args")
            if option == f"--{name}":
                found[name].take(_content(value, "")[0])
            elif option.startswith(f"--{name}.") and key == ".class_path":
                found[name].take(value)
            elif option.startswith(f"--{name}.") and not key.endswith(".help"):
                found[name].take({key.split(".")[1]: value})
    return found


def students_named(words: Sequence[str]) -> list[str]:
    """Return the names of several students that the words of a command, and the files that they name, tell.

    Args:
        words: The words.

    Example:
        >>> students_named(["fit", "--model.students.tiny=CifarResNet", "--model.students.tiny.depth", "8"])
        ['tiny']
    """
    begin = f"{_STUDENTS}."
    return [name.removeprefix(begin) for name in given(words) if name.startswith(begin)]


def _know_students(found: dict[str, Given], names: Iterable[object]) -> None:
    for name in names:
        if isinstance(name, str):
            found.setdefault(f"{_STUDENTS}.{name}", Given())


def own_defaults(spec: Mapping[str, Any] | str, given: Given, place: str) -> dict[str, Any]:
    """Return the options of a class that were given for another class only, with this class's own defaults, and say so.

    Args:
        spec: ``class_path`` and ``init_args``, as parsed, or the name of a function.
        given: What was given.
        place: The option that takes the class, for the message.

    Raises:
        ValueError: If the class needs an option that was given for another class only.

    Example:
        >>> parsed = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "weight_decay": 0.01}}
        >>> own_defaults(parsed, Given("SGD", ["lr"], is_renamed=True), "model.optimizer")
        {'weight_decay': 0}
    """
    if not given.is_renamed or isinstance(spec, str) or spec["class_path"].rpartition(".")[2] != given.name:
        return {}
    made = pkgutil.resolve_name(spec["class_path"])
    parameters, defaults = inspect.signature(made).parameters, _defaults(made)
    changed = {}
    for name, value in spec.get("init_args", {}).items():
        if name in given.options or value == defaults.get(name):
            continue
        if name in parameters and parameters[name].default is inspect.Parameter.empty:
            raise ValueError(f"{place}: {given.name} needs {name!r}; that of the class before it does not pass on.")
        changed[name] = defaults.get(name)
    if given.left:
        rank_zero_info(f"{place}: {given.name} starts from its own defaults, without {', '.join(given.left)}.")
    return changed


def _defaults(made: Any) -> dict[str, Any]:
    """Return the defaults of a class or function in the types of YAML, also of options that its base class takes."""
    parser = Parser(exit_on_error=False)
    add = parser.add_class_arguments if inspect.isclass(made) else parser.add_function_arguments
    add(made, "of", fail_untyped=False)
    options = yaml.safe_load(parser.dump(parser.get_defaults(), format="yaml", skip_validation=True))
    return dict((options or {}).get("of") or {})


def _content(value: str, folder: str) -> tuple[Any, str]:
    """Return what a file or a text holds, and the folder that the paths in it begin at; nothing if it is unusable."""
    file = value if "://" in value else os.path.join(folder, value)
    with suppress(OSError, ValueError, ImportError):  # the parser will say so, if the text is no long list
        files = get_filesystem(file)
        if files.isfile(file):
            with files.open(file, "r") as opened:
                return yaml_text.load(opened.read()), os.path.dirname(file)
    with suppress(ValueError):
        return yaml_text.load(value), folder
    return None, folder


def _under(content: Any, name: str, folder: str) -> Any:
    """Return what stands under a dotted name, ``None`` for nothing; a text on the way there is a file or YAML."""
    for key in name.split("."):
        if isinstance(content, str):
            content = _content(content, folder)[0]
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def _take_all(found: dict[str, Given], content: Any, folder: str) -> None:
    if not isinstance(content, Mapping):
        return
    for command in ("fit", "validate", "test", "predict"):
        _take_all(found, content.get(command), folder)
    _know_students(found, _under(content, _STUDENTS, folder) or ())
    for name, option in found.items():
        value = _under(content, name, folder)
        option.take(_content(value, folder)[0] if isinstance(value, str) else value)
    losses, module = found["model.losses"], content.get("model")
    if isinstance(losses, GivenLosses) and isinstance(module, Mapping) and "losses+" in module:
        losses.append(module["losses+"])
