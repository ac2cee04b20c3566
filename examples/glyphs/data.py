"""The images of ``glyphs.npz`` as a data module."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lightning_kd.data.digits import augment_digits
from lightning_kd.data.few_labels import few_labels
from lightning_kd.data.in_memory import InMemoryDataModule, Rows

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
FILE = Path(__file__).parent / "glyphs.npz"


class GlyphsDataModule(InMemoryDataModule):
    """Serve letters and digits in fonts: 12,400 images to train on, the others in fonts that no training image has.

    An image is a float32 tensor of shape (1, 24, 24) from 0, the ground, to 1, its target the place of the character in
    ``CHARACTERS``.

    Args:
        batch_size: Images a batch, >= 1; the last batch of an epoch may be smaller.
        held_out: Which fonts validation, test and prediction read: 3,968 images in the fonts of the test, or 1,984 in
            other fonts, for choices.
        labelled_per_class: Training images of each character that keep their label, 0 to 200; the others get the target
            -100, which CrossEntropyLoss ignores. None keeps all labels.
        label_seed: Chooses which training images keep their label.
        only_labelled: Whether training images without a label are left out.
        with_index: Whether a batch is (x, y, index) instead of (x, y); index is the row in its part of the data.
        augment: Whether training images are turned, scaled and moved a little more, anew in every batch.
        num_workers: Processes that load data, >= 0; 0 is the fastest for data this small.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(
        self,
        batch_size: int = 64,
        held_out: Literal["validation", "test"] = "test",
        labelled_per_class: int | None = None,
        label_seed: int = 0,
        only_labelled: bool = False,
        with_index: bool = False,
        augment: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, with_index, augment, num_workers)
        if held_out not in ("validation", "test"):
            raise ValueError(f"GlyphsDataModule: expected held_out to be validation or test, got {held_out!r}.")
        if labelled_per_class is not None and not 0 <= labelled_per_class <= 200:
            raise ValueError(
                "GlyphsDataModule: expected labelled_per_class from 0 to 200, or None for all labels, "
                f"got {labelled_per_class}."
            )
        self.held_out: Literal["validation", "test"] = held_out
        self.labelled_per_class = labelled_per_class
        self.label_seed = label_seed
        self.only_labelled = only_labelled

    def read(self) -> tuple[Rows, Rows]:
        """Return the images to train on, and those in other fonts."""
        images, target = _part("train")
        if self.labelled_per_class is not None:
            target = few_labels(target, self.labelled_per_class, self.label_seed)
        if self.only_labelled:
            images, target = images[target >= 0], target[target >= 0]
        return (images, target), _part(self.held_out)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment the images of a training batch, if wanted; nothing changes in the other stages."""
        if not self.augments_now:
            return batch
        images, *rest = batch
        return (augment_digits(images), *rest)


def _part(name: str) -> Rows:
    with np.load(FILE) as arrays:
        images = torch.from_numpy(arrays[f"{name}_images"])
    target = torch.arange(len(CHARACTERS)).repeat(len(images) // len(CHARACTERS))
    return images.float().div(255).unsqueeze(1), target
