"""Distil a sentence encoder from Python: what distil.yaml does, without a configuration file.

Run from the repository's root: python -m examples.sentences.distil
"""

from functools import partial

from lightning import Trainer, seed_everything
from torch.optim import AdamW

from examples.sentences.encoder import student, teacher
from examples.sentences.wordnet import WordNetDataModule
from lightning_kd import DistillationModule
from lightning_kd.losses import EmbeddingLoss
from lightning_kd.report import DistillationSummary


def main(steps: int = 300, dictionary: str | None = None) -> DistillationModule:
    seed_everything(1)
    module = DistillationModule(
        student=student(layers=[0, 5]),
        teacher=teacher(),
        losses=[EmbeddingLoss()],
        optimizer=partial(AdamW, lr=0.001),
    )
    trainer = Trainer(
        max_epochs=1,
        limit_train_batches=steps,
        accelerator="cpu",
        logger=False,
        callbacks=[DistillationSummary()],
        enable_checkpointing=False,
        default_root_dir="examples/sentences/runs",
    )
    trainer.fit(module, datamodule=WordNetDataModule(dictionary=dictionary))
    module.student.network.save_pretrained("examples/sentences/runs/student")
    return module


if __name__ == "__main__":
    main()
