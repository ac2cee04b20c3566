"""The command line ``lightning-kd COMMAND ...``: the table of commands, their help, and the choice of one."""

import difflib
import itertools
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Command:
    """A command: a function in a file of this folder, which is imported only when the command runs.

    Args:
        summary: One line for ``lightning-kd --help``.
        function: ``FILE:NAME``; the function takes the words after the command.
    """

    summary: str
    function: str

    def __call__(self, words: list[str]) -> object:
        """Run the command with the words after it."""
        file, _, name = self.function.partition(":")
        function: Any = getattr(import_module(f"{__package__}.{file}"), name)
        return function(words)


COMMANDS: Mapping[str, Command] = {
    "fit": Command("Train a student, with a teacher or without one.", "fit:fit"),
    "validate": Command("Compare a student with its teacher on the validation data.", "fit:validate"),
    "test": Command("Compare a student with its teacher on the test data.", "fit:test"),
    "predict": Command("Compute what a student predicts.", "fit:predict"),
    "cache": Command("Store a teacher's answers, so that later fits need not run it.", "cache:cache"),
    "compare": Command("Rank strategies for your networks beside the student alone.", "compare:compare_strategies"),
    "export": Command("Write the student inside a checkpoint as a file of its own.", "export:export"),
    "report": Command("Write a page of a recorded run.", "report:report"),
    "check": Command("Look at a fit before it runs: what is wrong, and what to do.", "check:check"),
    "init": Command("Write a commented configuration, and a file for your own networks.", "init:init"),
    "layers": Command("Show both networks layer by layer, and which layers to compare.", "layers:layers"),
    "losses": Command("List the losses; with a name, all of one: options, weights, papers.", "losses:losses"),
}

BEFORE_THE_COMMAND = ("-c", "--config", "--print_config")
"""Options that LightningCLI takes before the command too: of a configuration that has the command's name on top."""


def main() -> None:
    """Run the command line with the arguments of the process."""
    # as `python -m` does, but last: a configuration finds classes in the current folder and in its own, and no file
    # hides a package
    words = sys.argv[1:]
    sys.path += [os.getcwd(), *folders_of_configurations(words)]
    name = words[0] if words else ""
    if name in ("-h", "--help"):
        print(overview())
        return
    try:
        if name in COMMANDS:
            if sys.stderr.isatty():  # torch and Lightning take seconds to import
                print(f"lightning-kd {name}: loading torch and Lightning ...", file=sys.stderr, flush=True)
            COMMANDS[name](words[1:])
        elif name.partition("=")[0] == "--print_completion":
            from lightning_kd.commands.parsing.completion import script

            print(script(name.partition("=")[2] or " ".join(words[1:2]), COMMANDS), end="")
        elif told := misplaced(words):
            print(told, file=sys.stderr)
            sys.exit(2)
        elif name.partition("=")[0] in BEFORE_THE_COMMAND:
            from lightning_kd.commands.fit import CommandLine, run

            run(words, CommandLine)
        else:
            print(unknown(name) if name else overview(), file=sys.stderr)
            sys.exit(2)
    except Exception as error:
        from lightning_kd.commands.parsing.refusals import refusal  # what goes right need not wait for this import

        told = refusal(error)
        if told is None:
            raise
        print(f"lightning-kd {name}: error: {told}", file=sys.stderr)
        sys.exit(2)


def folders_of_configurations(words: list[str]) -> list[str]:
    """Return the folders of the files that the words name as configurations.

    Args:
        words: All words.

    Example:
        >>> folders_of_configurations(["fit", "--config=a/fit.yaml", "-c", "b/more.yaml"])
        ['.../a', '.../b']
    """
    named = [word.partition("=")[2] for word in words if word.startswith(("--config=", "-c="))]
    named += [value for option, value in itertools.pairwise(words) if option in ("--config", "-c")]
    return [os.path.dirname(os.path.abspath(file)) for file in named if "://" not in file]


def overview() -> str:
    """Return the help that names every command."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: lightning-kd COMMAND [OPTION ...]\n\n"
        "Distil a student from a teacher with PyTorch Lightning.\n\n"
        f"commands:\n{commands}\n\n"
        "`lightning-kd COMMAND --help` lists the options of a command.\n"
        "`lightning-kd --print_completion=bash > FILE`, or zsh, or fish: tab completion."
    )


def misplaced(words: list[str]) -> str | None:
    """Return the error for options that stand before their command, ``None`` if there is no such command.

    Args:
        words: All words.

    Example:
        >>> misplaced(["--config", "fit.yaml", "check"])
        'lightning-kd: error: Put the command first: `lightning-kd check --config fit.yaml`.'
    """
    place = next((i for i, word in enumerate(words) if word in COMMANDS), 0)
    option = words[0].partition("=")[0] if words else ""
    if not place or not option.startswith("-"):
        return None
    of_cli = COMMANDS[words[place]].function.startswith("fit:")
    is_known, is_near = option in BEFORE_THE_COMMAND, difflib.get_close_matches(option, BEFORE_THE_COMMAND)
    if (is_known and of_cli) or (is_near and not is_known):
        return None
    rest = " ".join(words[:place] + words[place + 1 :])
    return f"lightning-kd: error: Put the command first: `lightning-kd {words[place]} {rest}`."


def unknown(name: str) -> str:
    """Return the error for a command or an option before it that there is not, with the nearest names.

    Example:
        >>> unknown("caches")
        "lightning-kd: error: there is no command 'caches'. Did you mean 'cache'? `lightning-kd --help` lists all
        commands."
    """
    kind = "option before the command" if name.startswith("-") else "command"
    known = (*BEFORE_THE_COMMAND, "--help", "--print_completion") if name.startswith("-") else COMMANDS
    name = name.partition("=")[0]
    nearest = difflib.get_close_matches(name, known)
    hint = f"Did you mean {' or '.join(map(repr, nearest))}? " if nearest else ""
    return f"lightning-kd: error: there is no {kind} {name!r}. {hint}`lightning-kd --help` lists all commands."
