"""Configurations as YAML: what PyYAML reads without a word, and nobody can have meant, is refused with its line."""

import difflib
import sys
from collections.abc import Mapping
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from lightning_kd.commands.parsing.losses import with_losses_by_class

MODE = "lightning_kd"
"""Name of this way of reading among jsonargparse's parser modes; the mode "yaml" stays as others know it."""
_MOST = 100_000
_ASIDE = ("__path__", "$schema")
_CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")


class UnusableError(ValueError):
    """A text is no configuration; the message says where and why."""


class NotYamlError(UnusableError):
    """A text is not YAML; as the value of an option it may be meant as it stands."""


def load(text: str, path: str | None = None) -> Any:
    """Read a value or a configuration as jsonargparse does, without what it would take silently.

    Refused are keys that stand twice in a mapping, anchors that contain themselves, aliases that expand to more than
    100,000 values, the character NUL, and options of a class beside ``class_path`` instead of under ``init_args``.
    Names of strategies in ``model.losses`` become the classes of the losses.

    Args:
        text: YAML or JSON.
        path: Name of the file, ``""`` for a configuration without one; ``None`` for a value of an option.

    Raises:
        UnusableError: If the text is not YAML, or is refused; for a configuration also if it is no mapping.

    Example:
        >>> load("{model: {losses: [response_based]}}")
        {'model': {'losses': ['lightning_kd.losses.KDLoss']}}
        >>> load("trainer: {max_epochs: 1, max_epochs: 2}", "fit.yaml")
        Traceback (most recent call last):
        ...
        lightning_kd.commands.parsing.yaml_text.UnusableError: 'fit.yaml', line 1, column 26: the key 'max_epochs' ...
    """
    name = repr(path) if path else "the value" if path is None else "the configuration"
    try:
        root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        if root is not None:
            _check(root, (), {})
        value = get_loader("yaml")(text)
    except UnusableError as error:
        raise UnusableError(f"{name}, {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise NotYamlError(f"{name} cannot be read as YAML: {_in_one_line(error)}.") from None
    if path is not None and not isinstance(value, Mapping):
        found = "nothing" if root is None else "a list" if isinstance(value, list) else f"{str(value)[:40]!r}"
        raise UnusableError(f"{name}: expected options such as `model: ...`, got {found}.")
    try:
        return with_losses_by_class(value) if isinstance(value, Mapping) else value
    except ValueError as error:
        raise UnusableError(f"{name}: {error}") from None


def dump(value: Any) -> str:
    """Return plain data as a word of the command line, in YAML.

    Example:
        >>> dump([{"class_path": "KDLoss", "init_args": {"temperature": 2.0}}]), dump(None)
        ('[{class_path: KDLoss, init_args: {temperature: 2.0}}]', 'null')
    """
    return str(yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize)).removesuffix("\n...\n").strip()


set_loader(MODE, load, (yaml.YAMLError, UnusableError))


def _check(node: yaml.Node, above: tuple[int, ...], sizes: dict[int, int]) -> int:
    """Return how many values a node holds with its aliases written out; each node is looked at once."""
    if id(node) in above:
        raise UnusableError(f"{_place(node)}: this anchor contains itself.")
    if id(node) in sizes:
        return sizes[id(node)]
    size = 1
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        size += sum(_check(part, (*above, id(node)), sizes) for pair in node.value for part in pair)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_check(item, (*above, id(node)), sizes) for item in node.value)
    elif "\0" in node.value:
        raise UnusableError(f"{_place(node)}: this text contains the character NUL, which no option takes.")
    if size > _MOST:
        raise UnusableError(f"{_place(node)}: its aliases expand to more than {_MOST:,} values.")
    sizes[id(node)] = size
    return size


def _check_keys(node: yaml.MappingNode) -> None:
    """Refuse a key that stands twice or is misspelt beside a class; other keys are options, which the parser checks."""
    seen: dict[str, yaml.Node] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
            continue
        if key.value in seen:
            line = seen[key.value].start_mark.line + 1
            raise UnusableError(f"{_place(key)}: the key {key.value!r} stands here and in line {line}; one is lost.")
        seen[key.value] = key
    for name, key in seen.items():
        nearest = difflib.get_close_matches(name, _CLASS_KEYS, n=1, cutoff=0.8)
        if nearest and name not in _CLASS_KEYS and nearest[0] not in seen:
            raise UnusableError(f"{_place(key)}: there is no key {name!r} of a class. Did you mean {nearest[0]!r}?")
        if "class_path" in seen and name not in (*_CLASS_KEYS, *_ASIDE):
            raise UnusableError(f"{_place(key)}: {name!r} stands beside class_path; options stand under init_args.")


def _place(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}, column {node.start_mark.column + 1}"


def _in_one_line(error: Exception) -> str:
    """Say what is wrong and where; PyYAML says it in four lines."""
    mark = getattr(error, "problem_mark", None)
    said = getattr(error, "problem", None) or str(error).partition(";")[0].partition("\n")[0]
    return said if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: {said}"
