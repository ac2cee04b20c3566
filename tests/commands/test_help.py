"""The help: short, of this package first, and with the way to the rest."""

import re

import pytest

from lightning_kd import DistillationStrategyType
from lightning_kd.commands.main import COMMANDS

COMMANDS_OF_A_FIT = ["fit", "validate", "test", "predict"]
MATTER = ("--config", "--model.student", "--model.teacher", "--model.losses", "--data", "--trainer.max_epochs")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_is_one_screen(command, call):
    code, out, err = call(command, "--help")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("command", COMMANDS_OF_A_FIT)
def test_the_first_screen_has_the_options_that_matter_each_in_a_line(command, call):
    _, out, _ = call(command, "--help")
    assert out.splitlines()[0] == f"usage: lightning-kd {command} [OPTION ...]"
    for option in MATTER:
        assert re.search(rf"^  (?:-c, )?{re.escape(option)} ", out, re.MULTILINE), option
    listed = out[: out.index("More, each after")].splitlines()
    assert [line for line in listed if line.startswith("    ")] == []


@pytest.mark.parametrize("command", COMMANDS_OF_A_FIT)
def test_the_longer_help_has_every_option(command, call):
    code, out, err = call(command, "--help.more")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) < 210
    assert max(map(len, lines)) <= 100
    _, everything, _ = call(command, "--help.all")
    options = set(re.findall(r"^  (?:-\w, |-\w \w+, )?(--[\w.]+)(?<!\.help)(?=[ ,]|$)", everything, re.MULTILINE))
    assert len(options) > 50
    assert {option for option in options if option not in out} == set()


def test_the_module_comes_before_the_trainer_and_defaults_are_said(call):
    _, out, _ = call("fit", "--help")
    assert out.index("--model.student") < out.index("--data ") < out.index("--trainer.max_epochs")
    assert "(default: torch.optim.AdamW)" in " ".join(out.split())
    for word in ("known subclasses", ":class:", "``", "Union["):
        assert word not in out


def test_the_help_says_how_to_see_the_rest_and_each_way_works(call):
    _, out, _ = call("fit", "--help")
    ways = out[out.index("More, each after `lightning-kd fit`:") :]
    for way in ("--help.more", "--help.all", "--model.losses.help[=NAME]", "--print_config"):
        assert way in ways
    code, everything, _ = call("fit", "--help.all")
    assert code == 0
    assert "known subclasses" in everything
    code, losses, _ = call("fit", "--model.losses.help")
    assert code == 0
    assert call("fit", "--model.losses.help", "--model.task_weight=2") == (0, losses, "")
    for strategy in DistillationStrategyType:
        assert re.search(rf"^  {strategy.component.__name__} +{strategy.name} +\w", losses, re.MULTILINE), strategy
    code, network, _ = call("fit", "--model.student.help=DigitsConvNet")
    assert code == 0
    assert "width" in network


@pytest.mark.parametrize("words", [["--model.losses.help=KDLoss"], ["--model.losses.help", "response_based"]])
def test_the_options_of_one_loss_are_shown_by_any_of_its_names(words, call):
    code, out, err = call("fit", *words)
    assert (code, err) == (0, "")
    assert "Softening of both distributions" in out
    assert "--model.losses.temperature" in out
