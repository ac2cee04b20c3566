"""Distil digits from Python: what hybrid.yaml does, without a configuration file. Run from the repository's root."""

from functools import partial

from lightning import Trainer, seed_everything
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from lightning_kd import DistillationModule
from lightning_kd.data import DigitsConvNet, DigitsDataModule
from lightning_kd.losses import HintLoss, KDLoss
from lightning_kd.report import DistillationSummary
from lightning_kd.teachers import from_checkpoint


def main(epochs: int = 60) -> DistillationModule:
    seed_everything(1)
    module = DistillationModule(
        student=DigitsConvNet(width=6),
        teacher=from_checkpoint(DigitsConvNet(width=32, depth=2), "examples/digits/teacher.safetensors"),
        losses=[KDLoss(temperature=4.0, weight=0.9), HintLoss("stage2", "stage2", weight=1.0)],
        task_loss=nn.CrossEntropyLoss(),
        task_weight=0.1,
        optimizer=partial(SGD, lr=0.05, momentum=0.9, weight_decay=0.0005, nesterov=True),
        lr_scheduler=partial(CosineAnnealingLR, T_max=epochs),
    )
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[DistillationSummary()],
        default_root_dir="examples/digits/runs",
    )
    trainer.fit(module, datamodule=DigitsDataModule())
    module.export("examples/digits/runs/student.safetensors")
    return module


if __name__ == "__main__":
    main()
