"""Handwritten digits for examples and tests: 1797 images that come with scikit-learn, nothing to download."""

import math
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_kd.data.few_labels import few_labels
from lightning_kd.data.in_memory import InMemoryDataModule, Rows
from lightning_kd.data.replayed import Replayed


@final
class DigitsDataModule(InMemoryDataModule):
    """Serve scikit-learn's handwritten digits: 898 images to train on, 899 held out.

    An image is a float32 tensor of shape (1, 8, 8) in [0, 1], its target a digit. The split is stratified and always
    the same; validation, test and prediction all read the held-out half in its order, with every label.

    Args:
        batch_size: Images a batch, >= 1; the last batch of an epoch may be smaller.
        labelled_per_class: Training images per digit that keep their label, 0 to 87; the others get the target -100,
            which CrossEntropyLoss ignores. None keeps all labels.
        label_seed: Chooses which training images keep their label.
        with_index: Whether a batch is (x, y, index) instead of (x, y); index is the row in its half of the data.
        augment: Whether training images are turned, scaled and shifted a little, anew in every batch.
        views: Number of fixed ways in which each training image is turned, scaled and shifted, in place of new ones in
            every batch: then a teacher's answers can be stored. Batches carry no index then.
        num_workers: Processes that load data, >= 0; 0 is the fastest for data this small.

    Raises:
        ValueError: If a number is out of its range.
        ImportError: At setup, if scikit-learn is not installed.

    Example:
        >>> digits = DigitsDataModule(labelled_per_class=5)
        >>> digits.setup()
        >>> image, target = digits.train_set[0]
        >>> image.shape, len(digits.train_set), len(digits.held_out_set)
        (torch.Size([1, 8, 8]), 898, 899)
        >>> int((digits.train_set.tensors[1] >= 0).sum())
        50
    """

    def __init__(
        self,
        batch_size: int = 64,
        labelled_per_class: int | None = None,
        label_seed: int = 0,
        with_index: bool = False,
        augment: bool = True,
        num_workers: int = 0,
        views: int | None = None,
    ) -> None:
        super().__init__(batch_size, with_index, augment and views is None, num_workers)
        if views is not None and (not augment or with_index):
            raise ValueError("DigitsDataModule: views are of augmented images without index; give views alone.")
        self.views = views
        if labelled_per_class is not None and labelled_per_class < 0:
            raise ValueError(
                f"DigitsDataModule: expected labelled_per_class >= 0 or None for all labels, got {labelled_per_class}."
            )
        self.labelled_per_class = labelled_per_class
        self.label_seed = label_seed

    def read(self) -> tuple[Rows, Rows]:
        """Return both halves of the data."""
        train, held_out = _halves()
        if self.labelled_per_class is not None:
            train = train[0], few_labels(train[1], self.labelled_per_class, self.label_seed)
        return train, held_out

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Serve the training images in random order, in one of their views if these are fixed."""
        if self.views is None:
            return super().train_dataloader()
        return self._loader(Replayed(_Augmented(self.train_set), self.views), shuffle=True)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment the images of a training batch, where the batch is; nothing changes in the other stages."""
        if not self.augments_now:
            return batch
        images, *rest = batch
        return (augment_digits(images), *rest)


def augment_digits(
    images: Tensor, *, max_angle: float = math.radians(10), max_scale: float = 0.1, max_shift: float = 1.0
) -> Tensor:
    """Turn, scale and shift each image by its own random amounts; what comes in from outside is 0.

    Args:
        images: Float images of shape (B, C, H, W).
        max_angle: Largest turn either way (radians).
        max_scale: Largest change of the size, as a fraction 0..1.
        max_shift: Largest shift along each axis (pixels).

    Example:
        >>> image = torch.ones(1, 1, 4, 4)
        >>> torch.equal(augment_digits(image, max_angle=0.0, max_scale=0.0, max_shift=0.0), image)
        True
    """
    count, _, height, width = images.shape
    angle, scale, shift_x, shift_y = torch.rand(4, count, device=images.device).mul_(2).sub_(1)  # in [-1, 1]
    angle, scale = angle * max_angle, 1 + scale * max_scale
    cos, sin = angle.cos() * scale, angle.sin() * scale
    matrix = torch.stack(
        (cos, -sin, shift_x * (2 * max_shift / width), sin, cos, shift_y * (2 * max_shift / height)), dim=1
    ).view(count, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, align_corners=False).to(images.dtype)


class _Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Images that are augmented one by one, when they are read."""

    def __init__(self, rows: TensorDataset) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        image, target = self.rows[row]
        return augment_digits(image.unsqueeze(0)).squeeze(0), target


def _halves() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(
            'DigitsDataModule reads the digits that come with scikit-learn: pip install "lightning_kd[examples]"'
        ) from error
    pixels, digit = load_digits(return_X_y=True)
    parts = train_test_split(pixels, digit, test_size=0.5, random_state=0, stratify=digit)
    train_x, held_out_x = (torch.as_tensor(x, dtype=torch.float32).div(16).view(-1, 1, 8, 8) for x in parts[:2])
    train_y, held_out_y = (torch.as_tensor(y, dtype=torch.long) for y in parts[2:])
    return (train_x, train_y), (held_out_x, held_out_y)
