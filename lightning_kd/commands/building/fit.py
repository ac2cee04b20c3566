"""The module, the data and the Trainer that a configuration describes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lightning_kd.commands.fit import DistillationCLI
from lightning_kd.commands.parsing.presets import with_presets
from lightning_kd.commands.parsing.words import pairs
from lightning_kd.fit.students.several import SeveralStudents
from lightning_kd.module import DistillationModule


@dataclass(frozen=True)
class Built:
    """What a configuration describes."""

    module: DistillationModule
    data: LightningDataModule
    trainer: Trainer


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


def build(config: str | Sequence[str], *, why: str, with_losses: bool = True, more: Sequence[str] = ()) -> Built:
    """Build what a configuration of a fit with one student describes.

    Args:
        config: YAML file of the fit, or the words that follow ``lightning-kd fit``.
        why: Why one student is needed, for the error.
        with_losses: Whether the losses matter; if not, they need not be right yet.
        more: Options that change those of the fit.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there are several students.
    """
    words = ["--config", config] if isinstance(config, str) else list(config)
    for file in [value for option, value in pairs(with_presets(words)) if option in ("-c", "--config")]:
        if not os.path.isfile(file):
            raise FileNotFoundError(f"There is no file {file!r} (looked from {os.getcwd()!r}).")
    cli = (Building if with_losses else _BuildingNetworks)(args=["fit", *words, *more])
    if isinstance(cli.model, SeveralStudents):
        raise ValueError(f"The configuration has several students; {why}: give one with model.student.")
    return Built(cli.model, cli.datamodule, cli.trainer)
