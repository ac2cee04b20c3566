"""The module, the data and the Trainer that a configuration describes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lightning_kd.commands.fit import DistillationCLI
from lightning_kd.commands.parsing.messages import close
from lightning_kd.commands.parsing.presets import with_presets
from lightning_kd.commands.parsing.words import pairs
from lightning_kd.fit.students.several import SeveralStudents
from lightning_kd.module import DistillationModule


@dataclass(frozen=True)
class Built:
    """What a configuration describes."""

    module: DistillationModule | SeveralStudents
    data: LightningDataModule
    trainer: Trainer

    @property
    def students(self) -> dict[str, DistillationModule]:
        """The module of each student by its name, which is empty where there is one student."""
        return self.module.members if isinstance(self.module, SeveralStudents) else {"": self.module}

    def only(self, why: str) -> DistillationModule:
        """Return the module of the only student.

        Args:
            why: Why one student is needed, for the error.

        Raises:
            ValueError: If there are several students.
        """
        if isinstance(self.module, SeveralStudents):
            raise ValueError(
                f"The configuration has several students; {why}: give one by model.student in place of model.students."
            )
        return self.module

    def chosen(self, student: str) -> dict[str, DistillationModule]:
        """Return the module of one student by its name, or of all.

        Args:
            student: The name; empty for all.

        Raises:
            ValueError: If there is no such student; names the nearest.
        """
        if not student:
            return self.students
        if not isinstance(self.module, SeveralStudents):
            raise ValueError(f"--student {student}: the configuration has one student, without a name; leave this out.")
        if student not in self.students:
            nearest = close(student, self.students, 1)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"there is no student {student!r}.{hint} There are {', '.join(self.students)}.")
        return {student: self.students[student]}

    def one(self, student: str) -> tuple[str, DistillationModule]:
        """Return the name and the module of one student; the name of the only one is empty.

        Args:
            student: The name; empty for the only one.

        Raises:
            ValueError: If there is no such student, or several and none is named.
        """
        found = self.chosen(student)
        if len(found) > 1:
            raise ValueError(
                f"The configuration has the students {', '.join(found)}; say which one: --student {next(iter(found))}."
            )
        return next(iter(found.items()))


class Building(DistillationCLI):
    """The command line of a fit that builds everything, and does not fit."""

    def fit(self, model: LightningModule, **_: Any) -> None:
        """Do nothing, in the place of the Trainer's ``fit``."""


class _BuildingNetworks(Building):
    """The same with a loss without layers in the place of all, whose layers may be named wrongly as yet."""

    def before_instantiate_classes(self) -> None:
        """Change the losses."""
        super().before_instantiate_classes()
        self.config[str(self.subcommand)].model.losses = [
            Namespace(class_path="lightning_kd.losses.KDLoss", init_args=Namespace())
        ]


def build(config: str | Sequence[str], *, with_losses: bool = True, more: Sequence[str] = ()) -> Built:
    """Build what a configuration of a fit describes.

    Args:
        config: YAML file of the fit, or the words that follow ``lightning-kd fit``.
        with_losses: Whether the losses matter; if not, they need not be right yet.
        more: Options that change those of the fit.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    words = ["--config", config] if isinstance(config, str) else list(config)
    for file in [value for option, value in pairs(with_presets(words)) if option in ("-c", "--config")]:
        if not os.path.isfile(file):
            raise FileNotFoundError(f"There is no file {file!r} (looked from {os.getcwd()!r}).")
    cli = (Building if with_losses else _BuildingNetworks)(args=["fit", *words, *more])
    return Built(cli.model, cli.datamodule, cli.trainer)
