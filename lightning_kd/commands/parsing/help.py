"""The short help: what each option is for, in a line or two, and how to see the rest."""

import argparse
import re
import textwrap
from collections.abc import Iterable
from typing import Any

from jsonargparse import DefaultHelpFormatter

EVERYTHING = "--help.all"
_MORE = """\
More, each after `{command}`:
  --help.all                        all options with their types and the classes that they take
  --model.losses.help               the losses and strategies, one line each
  --model.losses.help=KDLoss        the options of one loss
  --OPTION.help=CLASS               the options of a class, for an OPTION that takes one:
                                    --model.student, --model.optimizer, --trainer.callbacks ...
  --config preset:NAME              losses of a paper: deit, distilbert, minilm, tinybert
  --config FILE --print_config      what would run, with every default; this is YAML for --config

Losses in YAML are classes or strategies, with options if you like:
  losses: [RESPONSE_BASED, {{HintLoss: {{weight: 100}}}}]
One option of one loss, by its logged name, class, strategy or number from 0, over a --config:
  --model.losses.kd.temperature=2   the other options stay as they are
A class that is named anew, over a --config or a default, starts from its own defaults.
"""


def more(command: str) -> str:
    """Return what stands below the options.

    Args:
        command: The words that call the command.
    """
    return _MORE.format(command=command)


class ShortHelp(DefaultHelpFormatter):
    """Options with the first sentence of their help and their default; no types, no list of classes."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        super().__init__(prog, **{"max_help_position": 32, **kwargs})  # type: ignore[no-untyped-call]

    def add_usage(self, usage: str | None, actions: Iterable[argparse.Action], *args: Any, **kwargs: Any) -> None:
        """Say that there are options, without a list of them all."""
        super().add_usage("%(prog)s [OPTION ...]", [], *args, **kwargs)

    def start_section(self, heading: str | None) -> None:
        """Begin a group of options, with a heading of one line."""
        super().start_section(heading and textwrap.shorten(heading, 90, placeholder=" ..."))

    def add_argument(self, action: argparse.Action) -> None:
        """Leave out what only shows another help; the lines below the options say how that is asked for."""
        if not any(option.endswith(".help") for option in action.option_strings):
            super().add_argument(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        options = [option for option in action.option_strings if not option.endswith("+")]
        metavar = str(action.metavar)
        return ", ".join(options) + (f" {metavar}" if metavar.startswith("{") and "true" not in metavar else "")

    def _get_help_string(self, action: argparse.Action) -> str:
        said = re.sub(r"(?<!e\.g)(?<!i\.e)\.\s+(?=[A-Z`]).*", "", " ".join((action.help or "").split()))
        said = re.sub(r":\w+:`~?([^`]+)`", lambda role: role.group(1).rpartition(".")[2], said)
        said = said.replace("``", "").rstrip(".").replace("%", "%%") if "%(" not in said else said
        default = action.default
        if default is None or default is argparse.SUPPRESS or default == "" or "default" in said.lower():
            return said
        return f"{said} (default: {getattr(default, 'class_path', None) or _short(default)})"


def _short(default: object) -> str:
    return str(default["class_path"] if isinstance(default, dict) and "class_path" in default else default)
