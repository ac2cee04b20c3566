"""Tab completion: the script names every command, and the options that its help lists."""

import re

import pytest

from lightning_kd.commands.main import COMMANDS
from lightning_kd.commands.parsing.completion import options_of, script
from tests.support import processes

FEW = {"export": COMMANDS["export"], "losses": COMMANDS["losses"]}


def test_the_options_are_those_of_the_help(call):
    listed = set(re.findall(r"^  (?:-h, )?(--\w+)", call("export", "--help")[1], re.MULTILINE))
    assert set(options_of(COMMANDS["export"])) == listed
    assert "--checkpoint" in listed


def test_bash_completes_commands_options_and_names_of_losses():
    def completed(*words):
        lines = [
            script("bash", FEW),
            f"COMP_WORDS=(lightning-kd {' '.join(words)})",
            f"COMP_CWORD={len(words)}",
            "_lightning_kd",
            'echo "${COMPREPLY[@]}"',
        ]
        (done,) = processes.run([["bash", "-c", "\n".join(lines)]], limit=60)
        return done.stdout.split()

    assert completed("ex") == ["export"]
    assert completed("export", "--ch") == ["--checkpoint"]
    assert completed("losses", "KDL") == ["KDLoss"]
    assert completed("export", "a") == []


@pytest.mark.parametrize(("shell", "line"), [("zsh", "bashcompinit"), ("fish", "complete -c lightning-kd")])
def test_other_shells_have_a_script_too(shell, line):
    assert line in script(shell, FEW)


def test_another_shell_is_refused_in_a_line(call):
    code, out, err = call("--print_completion=bahs")
    assert (code, out) == (2, "")
    assert "expected one of bash, zsh, fish, got 'bahs'. Did you mean 'bash'?" in err
