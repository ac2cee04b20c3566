"""The third door: ``lightning-kd fit|validate|test|predict --config ...``, on top of LightningCLI."""

from typing import Any

import lightning_kd.data
import lightning_kd.losses
import lightning_kd.teachers  # noqa: F401  imported so that their classes are known by their short names
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from lightning_kd.module import DistillationModule
from lightning_kd.report import DistillationSummary


class DistillationCLI(LightningCLI):
    """LightningCLI around ``DistillationModule`` and any data module, with the summary table at the end."""

    def __init__(self, args: ArgsType = None, **kwargs: Any) -> None:
        super().__init__(
            DistillationModule,
            LightningDataModule,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            parser_kwargs={"description": "Knowledge distillation with PyTorch Lightning."},
            args=args,
            **kwargs,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the summary table."""
        parser.add_lightning_class_args(DistillationSummary, "summary")


def main(args: ArgsType = None) -> None:
    """Run the command line.

    Args:
        args: The arguments; by default those of the process.
    """
    DistillationCLI(args=args)
