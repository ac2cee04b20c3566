"""The parser of every command: short help, errors of one screen with the nearest names, and strict YAML."""

import argparse
import inspect
import os
from collections.abc import Callable
from typing import Any, NoReturn, cast

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lightning_kd.commands.parsing import presets, yaml_text
from lightning_kd.commands.parsing.help import EVERY_OPTION, EVERYTHING, OneScreen, ShortHelp, ShortUsage, more
from lightning_kd.commands.parsing.losses import names
from lightning_kd.commands.parsing.messages import condense, for_users, with_nearest


class Parser(LightningArgumentParser):
    """LightningCLI's parser, which also parses the options of each class that another option names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # a shortened option would be a guess, and jsonargparse 5 no longer takes it
        super().__init__(*args, **{"allow_abbrev": False, "parser_mode": yaml_text.MODE, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with code 2 and one message; inside another parser, hand the message on with the nearest names."""
        parser = getattr(ex, "subcommand_parser", None) or self
        message = with_nearest(message, parser.known_options, self.known_classes)
        if not self.exit_on_error or "JSONARGPARSE_DEBUG" in os.environ:
            super().error(message, ex)
        said = condense(message)
        commands = self._subcommands_action.choices if self._subcommands_action else {}
        name = next((word for word in getattr(self, "args", ()) if word in commands), "") if parser is self else ""
        command = f"{parser.prog.replace(' [options]', '')} {name}".strip()
        said = for_users(said, name)
        self.exit(2, f"{command}: error: {said}\n`{command} --help` lists the options.\n")

    def known_options(self) -> list[str]:
        """Return the options, without dashes, also those of the classes that are defaults."""
        options = [option.lstrip("-") for option in self._option_string_actions if not option.endswith(("+", ".help"))]
        defaults = self.get_defaults(skip_validation=True).keys()
        return [*options, *(key.replace(".init_args", "") for key in defaults if ".init_args." in key)]

    def known_classes(self, key: str) -> list[str]:
        """Return the paths of the classes that an option takes, and for losses also their other names."""
        parser: argparse.ArgumentParser = self
        commands = self._subcommands_action.choices if self._subcommands_action else {}
        name, _, rest = key.partition(".")
        if name in commands:
            parser, key = commands[name], rest
        return parser.classes_of(key) if isinstance(parser, Parser) else []

    def classes_of(self, key: str) -> list[str]:
        """Return the paths of the classes that an option of this very parser takes."""
        action = self._option_string_actions.get(f"--{key}")
        listed = getattr(action, "extra_help", str)().partition("known subclasses: ")[2]
        paths = listed.split(", ") if listed else []
        return [*paths, *names()] if key.rpartition(".")[2] == "losses" else paths

    def parse_path(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Namespace:
        """Parse a file, and say so if it is no text."""
        try:
            return cast(Namespace, super().parse_path(path, *args, **kwargs))
        except (UnicodeDecodeError, OSError) as error:
            self.error(f"{os.fspath(path)!r} cannot be read as a text of UTF-8: {error}.", error)

    def format_help(self, *args: Any) -> str:
        """Return a screen of help, every option with ``--help.more``, or with ``--help.all`` jsonargparse's own."""
        words = getattr(self, "args", ())
        if EVERYTHING not in self._option_string_actions or EVERYTHING in words:
            return super().format_help(*args)
        before = self.formatter_class, self._action_groups, self.epilog
        try:
            self.formatter_class = ShortHelp if EVERY_OPTION in words else OneScreen
            self._action_groups = sorted(
                self._action_groups, key=lambda group: group is (self.groups or {}).get("trainer")
            )
            command = self.prog.replace(" [options]", "")
            return f"{super().format_help().replace(self.prog, command)}\n{more(command, presets.names())}"
        finally:
            self.formatter_class, self._action_groups, self.epilog = before


def call_with(words: list[str], function: Callable[..., object], command: str) -> None:
    """Call a function with what the words after a command say; its docstring is the help.

    Args:
        words: The words.
        function: The function, whose arguments are the options.
        command: The name of the command.
    """
    description = (inspect.getdoc(function) or "").partition("\n\nArgs:")[0]
    parser = Parser(prog=f"lightning-kd {command}", description=description, formatter_class=ShortUsage)
    parser.add_function_arguments(function, as_group=False, as_positional=False)
    # `fit` takes -c too, from Lightning
    words = ["--config" if word == "-c" else word for word in words]
    function(**parser.parse_args(words).as_dict())
