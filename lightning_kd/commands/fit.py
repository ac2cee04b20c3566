"""The commands ``lightning-kd fit|validate|test|predict --config ...``, on top of LightningCLI.

A configuration names classes: of the kind that each place expects, from any module that can be imported, with any
arguments. Read a stranger's configuration before you run it, as you would read a script. A checkpoint names no class
here: the configuration alone decides what is built.
"""

import functools
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import yaml
from jsonargparse import _common, set_parsing_settings
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

import lightning_kd.data
import lightning_kd.losses
import lightning_kd.teachers  # noqa: F401  imported so that their classes are known by their short names
from lightning_kd.commands.main import COMMANDS
from lightning_kd.commands.parsing import yaml_text
from lightning_kd.commands.parsing.help import EVERY_OPTION, EVERYTHING
from lightning_kd.commands.parsing.losses import (
    OPTION,
    named_by_class,
    options_of_one,
    overview,
    set_option,
    students_known,
    with_losses_by_class,
)
from lightning_kd.commands.parsing.parser import Parser
from lightning_kd.commands.parsing.presets import with_presets
from lightning_kd.commands.parsing.renamed import GivenLosses, given, own_defaults, students_named
from lightning_kd.commands.parsing.words import check_values
from lightning_kd.doctor import Doctor
from lightning_kd.files.class_paths import check_arguments, check_value
from lightning_kd.module import DistillationModule
from lightning_kd.report import DistillationSummary


class DistillationCLI(LightningCLI):
    """LightningCLI around ``DistillationModule`` and any data module, with a doctor and a final table."""

    doctor_looks_at = 0
    """How many batches the doctor looks at by default; a fit that Python starts asks for it itself."""

    def __init__(self, args: ArgsType = None, **kwargs: Any) -> None:
        with _denied_import_paths():
            super().__init__(
                DistillationModule,
                LightningDataModule,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                save_config_kwargs={"overwrite": True},
                parser_class=Parser,
                parser_kwargs={
                    "prog": "lightning-kd",
                    "description": "Distil a student from a teacher with PyTorch Lightning.",
                    **{command: {"description": COMMANDS[command].summary} for command in self.subcommands()},
                },
                args=args,
                **kwargs,
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the arguments, without Lightning's warning that ``args`` replaces the words of the process."""
        words: ArgsType = sys.argv[1:] if args is None else args
        if isinstance(words, dict):
            words = dict(with_losses_by_class(words))
        students: list[str] = []
        if isinstance(words, list):
            try:
                words = with_presets(words)
                students = [] if _asks_for_help(words) else students_named(words)
                with students_known(students):
                    words = named_by_class(words)
            except ValueError as error:
                parser.args = words
                parser.error(str(error), error)
            if _asks_for_losses(words):
                print(overview())
                parser.exit()
        with warnings.catch_warnings(), students_known(students):
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter", category=UserWarning)
            try:
                words = self._completed(parser, words, students) if isinstance(words, list) else words
                super().parse_arguments(parser, words)
            except (ValueError, OSError, RecursionError) as error:  # such as a file that cannot be read
                parser.args = words if isinstance(words, list) else []
                parser.error(str(error), error)
        self._check_class_paths(parser)

    def _completed(self, parser: LightningArgumentParser, words: list[str], students: list[str]) -> list[str]:
        """Return the words with what jsonargparse does not do: one option of one loss, and defaults of a new class.

        Both need to know what the words give together, so the words are parsed twice where they matter.
        """
        check_values(words)
        words, options = options_of_one(words, students)
        named = given(words) if not _asks_for_help(words) else {}
        if not options and not any(option.is_renamed for option in named.values()):
            return words
        super().parse_arguments(parser, [word for word in words if not word.startswith("--print_config")])
        parsed = yaml.safe_load(parser.dump(self.config, format="yaml", skip_validation=True))
        parsed = parsed.get(self.config.get("subcommand"), parsed)
        losses = parsed["model"].get("losses")
        for name, option in named.items():
            if isinstance(option, GivenLosses):
                for loss, item in option.beside(losses):
                    loss.setdefault("init_args", {}).update(own_defaults(loss, item, name))
            elif spec := functools.reduce(lambda content, key: (content or {}).get(key), name.split("."), parsed):
                changed = own_defaults(spec, option, name)
                words += [f"--{name}.{key}={yaml_text.dump(value)}" for key, value in changed.items()]
        for key, value in options:
            set_option(losses, key, yaml_text.load(value), students)
        are_changed = bool(options) or named["model.losses"].is_renamed
        # what was there before is complete in these; the parser would hand options of it on to another class
        return [*words, f"{OPTION}=null", f"{OPTION}={yaml_text.dump(losses)}"] if are_changed else words

    def _check_class_paths(self, parser: LightningArgumentParser) -> None:
        """Check the class paths of the configuration; jsonargparse 4.43 to 4.53 checks classes, not all functions."""
        options = self.config.get(self.config.get("subcommand") or "", self.config)
        model = options.get("model")
        if model is not None and model.get("student") is None and not model.get("students"):
            parser.error("expected --model.student, on the command line or in a YAML file by --config.")
        made = {"model": DistillationModule, "trainer": Trainer, "summary": DistillationSummary, "doctor": Doctor}
        try:
            for place, cls in made.items():
                check_arguments(cls, vars(options.get(place)), place)
            check_value(options.get("data"), LightningDataModule, "data")
        except ValueError as error:
            parser.error(str(error))

    def before_instantiate_classes(self) -> None:
        """Read checkpoints as tensors and plain data, unless the user says otherwise."""
        options = self.config[self.subcommand] if self.subcommand else None  # with run=False there is no command
        if options is not None and options.weights_only is None:
            options.weights_only = True

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning 2.6 would replace the configured options by those that the checkpoint names.

        There is no public option that switches this off.
        """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the summary table, the doctor, and longer helps; say what the data are in a line."""
        (parser.groups or {})["data"].title = "The data, as a LightningDataModule of your own or of lightning_kd.data"
        parser.add_lightning_class_args(DistillationSummary, "summary")
        parser.add_lightning_class_args(Doctor, "doctor")
        parser.set_defaults({"doctor.batches": self.doctor_looks_at})
        parser.add_argument(EVERY_OPTION, action="help", help="Show all options, each in a line or two, and exit.")
        parser.add_argument(EVERYTHING, action="help", help="Show all options with their types and classes, and exit.")


def _asks_for_losses(words: list[str]) -> bool:
    """Whether the help of the losses is asked for, without the name of one."""
    after = dict(zip(words, [*words[1:], "-"], strict=False))
    return after.get(f"{OPTION}.help", "KDLoss").startswith("-")


def _asks_for_help(words: list[str]) -> bool:
    return any(
        word == "-h" or word.partition("=")[0].endswith(("--help", ".help", EVERY_OPTION, EVERYTHING)) for word in words
    )


@contextmanager
def _denied_import_paths() -> Iterator[None]:
    """Let jsonargparse refuse the paths that no configuration should name, such as ``os.system``, inside the block.

    jsonargparse 4.53 only warns of them until ``import_path_denylist`` is passed; an empty list adds no path. The
    setting holds for every parser of the process, and there is no public way to read it, so the private dictionary is
    restored. Older versions have no such setting.
    """
    settings = getattr(_common, "parsing_settings", {})
    before = dict(settings)
    try:
        with suppress(TypeError):
            set_parsing_settings(import_path_denylist=[])
        yield
    finally:
        settings.clear()
        settings.update(before)


class CommandLine(DistillationCLI):
    """The same for whoever types ``lightning-kd fit``, with the doctor at work."""

    doctor_looks_at = 16


def run(args: list[str] | None = None, kind: type[DistillationCLI] = DistillationCLI) -> DistillationCLI:
    """Run ``fit``, ``validate``, ``test`` or ``predict`` and return the command line's module, data and trainer.

    Args:
        args: Arguments as on the command line; by default those of the process.
        kind: Which command line.
    """
    return kind(args=args)


def fit(words: list[str]) -> None:
    """Train, as the words after ``fit`` say."""
    run(["fit", *words], CommandLine)


def validate(words: list[str]) -> None:
    """Run one epoch on the validation data, as the words after ``validate`` say."""
    run(["validate", *words])


def test(words: list[str]) -> None:
    """Run one epoch on the test data, as the words after ``test`` say."""
    run(["test", *words])


def predict(words: list[str]) -> None:
    """Compute predictions, as the words after ``predict`` say."""
    run(["predict", *words])
