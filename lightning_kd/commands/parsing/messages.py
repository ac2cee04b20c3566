"""One line of what jsonargparse says in a page, with the nearest names for what does not exist."""

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable

_NOISE = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes: .*|Errors:|Expected an? <class 'NoneType'>.*"
    r"|Given value type: .*|Subclass types expect one of:|an? (class path|dict) .*|Expected a path but .* invalid"
)
_IN_USERS_WORDS = (
    (r'Parser key ("[^"]+":)', r"\1"),
    (r"^Problems parsing config: ", ""),
    (r"Problem with given class_path '(?:[\w.]+\.)?(\w+)':", r"\1:"),
    (r"Expected a dot import path string: (.+?)(?=\. Did|$)", r"there is no class '\1'"),
    (r"^Type typing\.Callable\[.+?\] expects a function or a callable class: ", ""),
    (r"""Unable to load config ['"](.+?)['"]""", r"'\1' is neither options nor a file of them"),
    (r" Add the import path to import_path_allowlist .*", ""),
    (r"an? <class '([\w.]+)'>", r"\1"),
    (r"an? typing\.Literal\[(.+)\]", r"one of \1"),
    (r"\. Got value: .{120,}?(?=\. Did you mean|$)", ""),
    (r"\. Got value: Namespace\(.*?(?=\. Did you mean|$)", ""),
    (r"\. Got value: ", ", got "),
)
_ASIDE = re.compile(r"Given value: (.{120}|NestedArg|\[?Namespace)|Not a valid subclass of \w+$")
_A_CONTAINER = re.compile(r"Expected collections\.abc\.\w+(, got .*)?")
"""What the one kind of a union says of the other, where each of both holds parts: it hides what is wrong in a part."""
_SCREEN = 1000
_NAME = 200
"""Letters of a name that are compared; longer ones are no names, and the time grows with the square."""
_MISSING = "the following arguments are required: "


def with_nearest(message: str, options: Callable[[], list[str]], classes: Callable[[str], list[str]]) -> str:
    """Add the nearest names to each line of a message that names what does not exist.

    Args:
        message: What the parser says; a line that has its nearest names already is left alone.
        options: Returns the options that there are, without dashes.
        classes: Returns the classes that an option takes.

    Example:
        >>> with_nearest("Option 'temprature' is not accepted", lambda: ["temperature", "weight"], lambda key: [])
        "Option 'temprature' is not accepted. Did you mean 'temperature'?"
    """
    key = ""
    lines = []
    for line in message.splitlines():
        named = re.search(r'Parser key "([^"]+)"', line) or re.match(r"--([\w.]+)\.help: ", line)
        key = named.group(1) if named else key
        nearest = [] if "Did you mean" in line else _nearest(line, message, options, key, classes)
        if nearest and "given class_path" in message and f"string: {nearest[0]}" in line:
            continue  # of a union of classes, the others do not know a class that one of them knows
        lines.append(f"{line}. Did you mean {' or '.join(map(repr, nearest))}?" if nearest else line)
    return "\n".join(lines)


def _nearest(
    line: str, message: str, options: Callable[[], list[str]], key: str, classes: Callable[[str], list[str]]
) -> list[str]:
    if found := re.search(r"unrecognized arguments: .*?--([^\s=]+)", line):
        loss, _, option = found.group(1).partition(".")
        losses = [f"--{key}.{name}.{option}" for name in close(loss, classes(key), 1)] if option else []
        leaves = {name.rpartition(".")[2]: name for name in options()}
        near = close(found.group(1), options()) or [leaves[name] for name in close(found.group(1), leaves)]
        return losses or [f"--{name}" for name in near]
    if (found := re.search(r"unrecognized arguments: ([^-\s]\S*)", line)) and os.path.isfile(found.group(1)):
        return [f"--config {found.group(1)}"]
    if found := re.search(r"(?:Option|accept option) '([^']+)'(?! is not accepted before)", line):
        parts = found.group(1).split(".")
        there = options()
        of_length = {count: [name for name in there if name.count(".") == count - 1] for count in range(len(parts) + 1)}
        nearest = (close(".".join(parts[:count]), of_length[count]) for count in range(len(parts), 0, -1))
        return next(filter(None, nearest), []) or close(found.group(1), there)
    if found := re.search(r"invalid choice: '([^']+)' \(choose from (.+)\)", line):
        return close(found.group(1), re.findall(r"[\w.-]+", found.group(2)), cutoff=0.6)
    if found := re.search(r"typing\.Literal\[(.+)\]", line):
        value = re.search(r"(?:Got|Given) value: (\S+)", message)
        return close(value.group(1), re.findall(r"[\w.-]+", found.group(1)), cutoff=0.6) if value else []
    if found := re.search(r"dot import path string: (\S+)", line):
        return close_classes(found.group(1), classes(key))
    if found := re.search(r"[mM]odule '([\w.]+)' has no attribute '(\w+)'", line):
        module, name = found.groups()
        return [f"{module}.{near}" for near in close(name, dir(sys.modules.get(module)), cutoff=0.6)]
    if found := re.search(r"No module named '([\w.]+)'", line):
        known = {path.rpartition(".")[0] for path in classes(key)} | {m for m in sys.modules if "._" not in m}
        return close(found.group(1), known, 1)
    return []


def close(name: str, known: Iterable[str], count: int = 3, cutoff: float = 0.7) -> list[str]:
    """Return the nearest of the known names, in any case of letters; at most ``count``.

    Args:
        name: What was written.
        known: What exists.
        count: How many to return at most.
        cutoff: How alike they must be, 0..1.

    Example:
        >>> close("kdloss", ["KDLoss", "HintLoss"])
        ['KDLoss']
    """
    by_lower: dict[str, str] = {}
    for other in known:
        by_lower.setdefault(other.lower(), other)
    name = name[:_NAME]
    nearest = difflib.get_close_matches(name.lower(), by_lower, n=count, cutoff=cutoff)
    near = [other for other in nearest if _ratio(name, other) > _ratio(name, nearest[0]) - 0.1]
    return [by_lower[other] for other in near]


def _ratio(name: str, other: str) -> float:
    return difflib.SequenceMatcher(None, name.lower(), other).ratio()


def close_classes(name: str, paths: Iterable[str]) -> list[str]:
    """Return the short names of the classes nearest to a name, or their paths where the name is a path."""
    paths = list(paths)
    return close(name, paths if "." in name else dict.fromkeys(path.rpartition(".")[2] for path in paths), cutoff=0.6)


def condense(message: str) -> str:
    r"""Return a message of many lines as one, without what says nothing to a user; at most a screen.

    Args:
        message: What jsonargparse says.

    Example:
        >>> condense(
        ...     'Parser key "trainer.max_epochs":\n  Does not validate against any of the Union subtypes\n  Errors:\n'
        ...     "    - Expected a <class 'int'>\n    - Expected a <class 'NoneType'>\n  Given value: two"
        ... )
        '"trainer.max_epochs": Expected int; got two'
    """
    said: list[str] = []
    for raw in message.splitlines():
        line = raw.strip().removeprefix("- ").strip()
        if not line or _NOISE.fullmatch(line):
            continue
        for pattern, words in _IN_USERS_WORDS:
            line = re.sub(pattern, words, line)
        if line and not any(line.endswith(before) for before in said):
            said.append(line)
    others = [line for line in said if not _A_CONTAINER.fullmatch(line)]
    if any(not line.startswith("Given value") and not line.endswith(":") for line in others):
        said = others
    if len(said) > 1:
        said = [line for line in said if not _ASIDE.match(line)]
    if any(words in line for words in ("Did you mean", "there is no class", ", got ") for line in said):
        said = [line for line in said if not line.startswith("Given value")]
    text = ""
    for line in (re.sub(r"^Given value: ", "got ", line) for line in said):
        text += line if not text else f" {line}" if text[-1] in ":?." else f"; {line}"
    return text if len(text) <= _SCREEN else f"{text[:_SCREEN]} ..."


def for_users(message: str, command: str) -> str:
    """Say in the user's words what the parser says of commands and of options that are missing.

    Args:
        message: One line.
        command: Name of the command, ``""`` for none.

    Example:
        >>> for_users("the following arguments are required: fit.model.student, fit.data", "fit")
        'expected --model.student and --data, on the command line or in a YAML file by --config.'
    """
    if message.startswith(_MISSING):
        missing = message.removeprefix(_MISSING).split(", ")
        options = " and ".join(f"--{option.removeprefix(f'{command}.')}" for option in missing)
        return f"expected {options}{', on the command line or in a YAML file by --config' if command else ''}."
    if message.startswith('expected "subcommand"'):
        return "put a command first: `lightning-kd fit --config FILE`."
    if found := re.search(r"is not accepted before subcommand '?(\w+)", message):
        return f"{message}. Put the command first: `lightning-kd {found.group(1)} --config FILE`."
    return message
