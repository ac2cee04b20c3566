"""Commands that look at a fit: they take options of their own, and every option of ``lightning-kd fit``."""

import difflib
import inspect
from collections import deque
from collections.abc import Callable, Sequence

from lightning_kd.commands.parsing.help import ShortUsage
from lightning_kd.commands.parsing.parser import Parser

_OF_FIT = (
    *("--config", "--model", "--data", "--trainer", "--summary", "--optimizer", "--lr_scheduler"),
    *("--seed_everything", "--ckpt_path", "--weights_only", "--print_config", "--verbose"),
)
"""Options of a fit that have no option of their own behind a dot."""


def call_with_fit(words: list[str], function: Callable[..., object], command: str) -> object:
    """Call a function with the words of a fit, and with what the other words say; its docstring is the help.

    Args:
        words: The words after the command.
        function: The function; ``config`` takes the words of the fit, the other arguments are options.
        command: The name of the command.
    """
    own, of_fit = apart(words, function)
    parser = Parser(prog=f"lightning-kd {command}", description=_help(function), formatter_class=ShortUsage)
    parser.add_function_arguments(function, as_group=False, as_positional=False, skip={"config"})
    options = parser.parse_args(own).as_dict()
    if not of_fit and inspect.signature(function).parameters["config"].default is inspect.Parameter.empty:
        parser.error("expected --config FIT.yaml, the configuration of a fit.")
    for word in of_fit:
        option = word.partition("=")[0]  # its value may hold a password
        if option.startswith("--") and "." not in option and option not in _OF_FIT:
            nearest = difflib.get_close_matches(option, (*_options(function), *_OF_FIT), n=1)
            parser.error(f"there is no option {option}.{f' Did you mean {nearest[0]}?' if nearest else ''}")
    return function(**({"config": of_fit} if of_fit else {}), **options)


def apart(words: Sequence[str], function: Callable[..., object]) -> tuple[list[str], list[str]]:
    """Return the words of the command itself, and those of the fit."""
    names = _options(function)
    own: list[str] = []
    others: list[str] = []
    rest = deque(words)
    while rest:
        word = rest.popleft()
        option, equals, value = word.partition("=")
        option = option.replace("-", "_").replace("__", "--", 1) if option.startswith("--") else option
        if option in ("--help", "-h"):
            own.append(word)
        elif option not in names:
            others.append(word)
        elif equals:
            own.append(f"{option}={value}")
        elif names[option] is bool:
            own.append(f"{option}={rest.popleft() if rest and rest[0] in ('true', 'false') else 'true'}")
        else:
            own += [option, *([rest.popleft()] if rest else [])]
    return own, others


def _options(function: Callable[..., object]) -> dict[str, object]:
    """Return the options of a command itself, each with its type."""
    parameters = inspect.signature(function).parameters
    return {f"--{name}": one.annotation for name, one in parameters.items() if name != "config"}


def _help(function: Callable[..., object]) -> str:
    about = (inspect.getdoc(function) or "").partition("\n\nArgs:")[0]
    return (
        f"{about}\n\n--config FIT.yaml and every other option are those of `lightning-kd fit`, such as "
        "--trainer.max_epochs=20."
    )
