"""Configuration files that would hang, or would be read in another way than they look: refused with key and line."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

_SUFFIXES = (".yaml", ".yml", ".json")


def check_config_files(words: Sequence[str]) -> None:
    """Look through the configuration files that the words of a command line name; end with code 2 if one is wrong.

    Args:
        words: The words of the command line; what ends in ``.yaml``, ``.yml`` or ``.json`` and is there is such a file.
    """
    for word in words:
        path = Path(word.partition("=")[2] if word.startswith("--") and "=" in word else word)
        if path.suffix.lower() in _SUFFIXES and path.is_file():
            wrong = what_is_wrong(path.read_text(encoding="utf-8", errors="replace"))
            if wrong:
                print(f"lightning-kd: {path}, {wrong}", file=sys.stderr)
                sys.exit(2)


def what_is_wrong(text: str) -> str | None:
    r"""Return in words what is wrong with a configuration, ``None`` if nothing is.

    Other errors, such as an option that does not exist, are found when the options are parsed.

    Example:
        >>> what_is_wrong("a: 1\nb: 2\na: 3\n")
        "line 3: the key 'a' stands there for the second time, first in line 1; YAML would take the last one."
        >>> what_is_wrong("a: &x\n  b: *x\n")
        "line 1: the value of 'a' contains itself by the alias *x; take that alias away."
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        place = f"line {error.problem_mark.line + 1}" if error.problem_mark else "somewhere"
        return f"{place}: this is no YAML: {error.problem or error.context}."
    except yaml.YAMLError as error:
        return f"this is no YAML: {' '.join(str(error).split())}."
    return None if root is None else next(_faults(root, "", {}, set(), text), None)


def _faults(node: yaml.Node, path: str, above: Mapping[int, str], done: set[int], text: str) -> Iterator[str]:
    """Yield what is wrong below a node; a node that is named several times is looked through once."""
    line = node.start_mark.line + 1
    if id(node) in above:
        anchor = re.match(r"&([^\s,\[\]{}]+)", text[node.start_mark.index :])
        alias = f"the alias *{anchor[1]}" if anchor else "an alias"
        whose = f"the value of {above[id(node)]!r}" if above[id(node)] else "the file"
        yield f"line {line}: {whose} contains itself by {alias}; take that alias away."
        return
    if id(node) in done:
        return
    done.add(id(node))
    above = {**above, id(node): path}
    if isinstance(node, yaml.ScalarNode) and "\0" in node.value:
        yield f"line {line}: the value of {path!r} holds the character NUL (\\0), which no option takes."
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield from _faults(value, f"{path}[{i}]", above, done, text)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, its_line = str(key.value), key.start_mark.line + 1
            whole = f"{path}.{name}" if path else name
            if name in lines and name != "<<":
                yield (
                    f"line {its_line}: the key {whole!r} stands there for the second time, first in line "
                    f"{lines[name]}; YAML would take the last one."
                )
            lines[name] = its_line
            yield from _faults(key, f"{whole} (the key)", above, done, text)
            yield from _faults(value, whole, above, done, text)
