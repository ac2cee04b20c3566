"""Teacher assistants (Mirzadeh et al., AAAI 2020): a large teacher teaches a middle network, which teaches the student.

    python examples/digits/assistants.py

One fit after another; beside the chain the student is trained by the teacher directly, with the same seed and epochs.
Run from the repository's root.
"""

from functools import partial

from lightning import Trainer, seed_everything
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from lightning_kd import DistillationModule
from lightning_kd.data import DigitsConvNet, DigitsDataModule
from lightning_kd.losses import KDLoss
from lightning_kd.teachers import from_checkpoint

WIDTHS = (16, 10, 6)
"""The assistants and, last, the student."""


def taught(teacher: nn.Module, width: int, epochs: int, seed: int, per_class: int | None) -> tuple[nn.Module, float]:
    """Train a network of a width by a teacher, and return it with its accuracy on the held-out half."""
    seed_everything(seed)
    module = DistillationModule(
        student=DigitsConvNet(width=width),
        teacher=teacher,
        losses=[KDLoss(temperature=4.0, weight=0.9)],
        task_loss=nn.CrossEntropyLoss(),
        task_weight=0.1,
        optimizer=partial(SGD, lr=0.05, momentum=0.9, weight_decay=0.0005, nesterov=True),
        lr_scheduler=partial(CosineAnnealingLR, T_max=epochs),
    )
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=DigitsDataModule(labelled_per_class=per_class))
    return module.student, float(trainer.callback_metrics["val/accuracy"])


def main(epochs: int = 60, seed: int = 1, per_class: int | None = None) -> dict[str, float]:
    """Train the chain and the direct student, and return the accuracy of each link."""
    teacher = from_checkpoint(DigitsConvNet(width=32, depth=2), "examples/digits/teacher.safetensors")
    accuracies, guide = {}, teacher
    for width in WIDTHS:
        guide, accuracies[f"width {width}, by the one before"] = taught(guide, width, epochs, seed, per_class)
    _, accuracies[f"width {WIDTHS[-1]}, by the teacher directly"] = taught(teacher, WIDTHS[-1], epochs, seed, per_class)
    for link, accuracy in accuracies.items():
        print(f"{link:<36}{accuracy:.4f}")
    return accuracies


if __name__ == "__main__":
    main()
