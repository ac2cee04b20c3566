"""What other parts of Lightning and torch must know of a distillation: DDP, weight averages, the summary."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, StochasticWeightAveraging, WeightAveraging
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn

from lightning_kd.capture.networks import num_parameters, original
from lightning_kd.losses.base import DistillationLoss
from lightning_kd.losses.naming import NamedLosses
from lightning_kd.teachers.base import Teacher


def keep_from_ddp(module: LightningModule, prefix: str, losses: NamedLosses) -> None:
    """Tell DDP which buffers the losses themselves keep equal in all processes.

    Args:
        module: The module that DDP will wrap.
        prefix: Where the losses sit in it.
        losses: The losses.
    """
    names = [
        f"{prefix}.{path}.{buffer}"
        for path, loss in losses.named_modules()
        if isinstance(loss, DistillationLoss)
        for buffer in loss.replicated_buffers
    ]
    if names:
        # torch 2.10 to 2.14 have no public name for it
        ignored = set(getattr(module, "_ddp_params_and_buffers_to_ignore", ()))
        module._ddp_params_and_buffers_to_ignore = ignored | set(names)  # type: ignore[assignment]


def copy_again(trainer: Trainer, module: LightningModule, losses: NamedLosses) -> None:
    """Let weight-averaging callbacks that were set up before the losses were built copy the module once more."""
    if not losses.state_dict():
        return
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        # Lightning 2.6 has no public name for the average
        averages = isinstance(callback, WeightAveraging | StochasticWeightAveraging)
        if averages and callback._average_model is not None:
            callback.setup(trainer, module, "fit")


def warn_of_eval_mode(student: nn.Module) -> None:
    """Warn of a student that is in eval mode as a fit begins."""
    if not student.training:
        rank_zero_warn(
            "The student is in eval mode, so its BatchNorm and dropout layers will not train; "
            "call student.train() before fit unless you froze them on purpose."
        )


def say_what_the_summary_leaves_out(trainer: Trainer, teacher: Teacher | None) -> None:
    """Name the teacher beside Lightning's model summary, which shows the module alone."""
    if teacher is None or teacher.module is None:
        return
    if any(isinstance(callback, ModelSummary) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        rank_zero_info(
            f"The teacher, {type(original(teacher.module)).__name__} with {num_parameters(teacher.module):,} "
            "parameters, is frozen and no part of the module, so it is not in the summary."
        )
