"""The help of a fit: one screen of the options that matter, and how to see the rest."""

import argparse
import re
import textwrap
from collections.abc import Iterable
from typing import Any

from jsonargparse import DefaultHelpFormatter

EVERY_OPTION = "--help.more"
EVERYTHING = "--help.all"
_SHOWN = {
    "config": "YAML file of options; of several, later ones change earlier ones",
    "print_config": "Print what would run, as YAML, and exit",
    "seed_everything": "Seed of all random numbers",
    "model.student": "The network that learns",
    "model.teacher": "The trained network to learn from, or a Teacher of another kind",
    "model.losses": "The distillation losses, each with its own weight",
    "model.task_loss": "The task's own loss on (logits, target), or \"model\" for the student's own",
    "model.task_weight": "Factor of the task's own loss, or a schedule of it",
    "model.optimizer": "Makes the optimizer",
    "model.lr_scheduler": "Makes the schedule of the learning rate",
    "model.teacher_weights": "File or files of the teacher's weights",
    "model.teacher_inputs": "Another view of the batch for the teacher: Renormalize, Resize ...",
    "model.metrics": "Torchmetrics of your own",
    "data": "The data, as a LightningDataModule of yours or of lightning_kd.data",
    "ckpt_path": "Checkpoint from which a fit goes on, or whose student is evaluated",
    "trainer.max_epochs": "How often the training data is passed over",
    "trainer.accelerator": "cpu, gpu, mps ...",
    "trainer.devices": "How many devices, or which",
    "trainer.precision": "Such as bf16-mixed",
    "trainer.callbacks": "Lightning's callbacks, or yours",
    "trainer.logger": "Where the curves are written",
    "trainer.fast_dev_run": "Run one batch of everything, to see that it works",
}
"""What the first screen says of the options on it; a fit seldom needs others. Each has one line here."""
_MORE = """\
More, each after `{command}`:
  --help.more                       all options, each in a line or two
  --help.all                        all options with their types and the classes that they take
  --OPTION.help=CLASS               the options of a class, for an OPTION that takes one:
                                    --model.student, --model.optimizer, --trainer.callbacks ...
  --model.losses.help[=NAME]        the losses; with a name, the options of one
  --model.losses.kd.temperature=2   one option of one loss, over a --config; the others stay
  --config preset:NAME              losses of a paper: {presets}
  --config FILE --print_config      what would run, with every default; this is YAML for --config
Losses in YAML: [RESPONSE_BASED, {{HintLoss: {{weight: 100}}}}]. See also `lightning-kd losses`.
Several students: `students: {{small: ..., tiny: ...}}`, `losses: {{small: [...], tiny: [...]}}`.
A class that is named anew starts from its own defaults.
"""


def more(command: str, presets: Iterable[str]) -> str:
    """Return what stands below the options.

    Args:
        command: The words that call the command.
        presets: Names of the recipes that come with the package.
    """
    return _MORE.format(command=command, presets=", ".join(presets))


class ShortUsage(DefaultHelpFormatter):
    """All options with their types, below a usage of one line, which does not list them once more."""

    def add_usage(self, usage: str | None, actions: Iterable[argparse.Action], *args: Any, **kwargs: Any) -> None:
        """Say that there are options, without a list of them all."""
        super().add_usage("%(prog)s [OPTION ...]", [], *args, **kwargs)


class ShortHelp(ShortUsage):
    """Options with the first sentence of their help and their default; no types, no list of classes."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        # jsonargparse 4.53 gives its formatter no types
        super().__init__(prog, **{"max_help_position": 32, **kwargs})  # type: ignore[no-untyped-call]

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


class OneScreen(ShortHelp):
    """The options that a fit most often needs, each in a line."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        super().__init__(prog, **{"width": 102, "max_help_position": 27, **kwargs})

    def add_argument(self, action: argparse.Action) -> None:
        """Leave out what is not on the first screen."""
        if _name(action) in _SHOWN:
            super().add_argument(action)

    def _get_help_string(self, action: argparse.Action) -> str:
        default = action.default
        said = _SHOWN[_name(action)]
        if default is None or default is argparse.SUPPRESS or _name(action) == "trainer.fast_dev_run":
            return said
        return f"{said} (default: {getattr(default, 'class_path', None) or _short(default)})"


def _name(action: argparse.Action) -> str:
    return action.option_strings[-1].lstrip("-").removesuffix("+") if action.option_strings else ""


def _short(default: object) -> str:
    return str(default["class_path"] if isinstance(default, dict) and "class_path" in default else default)
