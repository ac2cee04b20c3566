"""Tab completion: a script for the shell with the commands and their options, as their help lists them."""

import contextlib
import io
import re
from collections.abc import Callable, Iterable, Mapping

from lightning_kd.commands.parsing.help import EVERY_OPTION
from lightning_kd.commands.parsing.losses import names
from lightning_kd.commands.parsing.messages import close

OPTION = "--print_completion"
_BASH = """\
_lightning_kd() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" options=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        options="{commands}"
    else
        case "${{COMP_WORDS[1]}}" in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$options" -- "$word"))
}}
complete -o default -F _lightning_kd lightning-kd
"""
_ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"
SHELLS = ("bash", "zsh", "fish")


def script(shell: str, commands: Mapping[str, Callable[[list[str]], object]]) -> str:
    """Return a script that completes commands and options; files complete as the shell does it.

    Args:
        shell: Which shell: bash, zsh or fish.
        commands: The commands by name; each takes the words after it, and lists its options for ``--help``.

    Raises:
        ValueError: If the shell is another one.
    """
    if shell not in SHELLS:
        nearest = close(shell, SHELLS, 1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"{OPTION}: expected one of {', '.join(SHELLS)}, got {shell!r}.{hint}")
    words = {name: [*options_of(command), *(names() if name == "losses" else [])] for name, command in commands.items()}
    if shell == "fish":
        return _fish(words)
    cases = "\n".join(f'            {name}) options="{" ".join(options)}" ;;' for name, options in words.items())
    return (_ZSH if shell == "zsh" else "") + _BASH.format(commands=" ".join(words), cases=cases)


def options_of(command: Callable[[list[str]], object]) -> list[str]:
    """Return the options that a command's help lists, in their order."""
    for word in (EVERY_OPTION, "--help"):
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()):
            try:
                command([word])
            except SystemExit as end:
                if end.code:
                    continue  # a command of few options has no longer help
        found = re.findall(r"^  (?:-\w, )?(--[\w.]+)", out.getvalue(), re.MULTILINE)
        return list(dict.fromkeys(["--help", *found]))
    return ["--help"]


def _fish(words: Mapping[str, Iterable[str]]) -> str:
    start = "complete -c lightning-kd"
    lines = [f'{start} -n "__fish_use_subcommand" -f -a "{" ".join(words)}"']
    for name, options in words.items():
        lines.append(f'{start} -n "__fish_seen_subcommand_from {name}" -a "{" ".join(options)}"')
    return "\n".join(lines) + "\n"
