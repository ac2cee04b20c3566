"""CIFAR-100 as the published recipes serve it: random crops of padded images, mirrored half of the time."""

import os
from functools import cache
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.data.in_memory import InMemoryDataModule, Rows

MEAN = (0.5071, 0.4867, 0.4408)  # of each colour over the training images, in [0, 1]
STD = (0.2675, 0.2565, 0.2761)
PADDING = 4  # pixels


@final
class CIFAR100DataModule(InMemoryDataModule):
    """Serve CIFAR-100: 50 000 images to train on, 10 000 held out, 100 classes.

    An image is a float32 tensor of shape (3, 32, 32), normalised by colour. Training images are padded by 4 black
    pixels, cropped at random and mirrored half of the time; validation, test and prediction read the held-out images
    in their order. The images stay bytes until their batch is on its device, where it is cropped, mirrored and
    normalised as a whole.

    The published files are pickles. torchvision compares each with its published MD5 sum before it opens it, so
    another file in its place is refused unread.

    Args:
        root: Folder that holds the data, as torchvision lays it out (cifar-100-python/ inside).
        batch_size: Images a batch, >= 1; the last batch of an epoch may be smaller.
        with_index: Whether a batch is (x, y, index) instead of (x, y); index is the row in its part of the data.
        augment: Whether training images are cropped and mirrored at random, anew in every batch.
        download: Whether to fetch the data (169 MB) into root if it is not there.
        num_workers: Processes that load data, >= 0; 0 is the fastest, as the data is in memory.

    Raises:
        ValueError: If a number is out of its range.
        ImportError: At setup, if torchvision is not installed.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = "data",
        batch_size: int = 64,
        with_index: bool = False,
        augment: bool = True,
        download: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, with_index, augment, num_workers)
        self.root = root
        self.download = download

    def prepare_data(self) -> None:
        """Fetch the data, in one process only, if that is wanted."""
        if self.download:
            _read(self.root, train=True, download=True)

    def read(self) -> tuple[Rows, Rows]:
        """Return the images to train on and those held out, as bytes."""
        return _read(self.root, train=True), _read(self.root, train=False)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Crop and mirror the images of a training batch, and normalise those of any batch, where the batch is."""
        images, *rest = batch
        if self.augments_now:
            images = crop_and_mirror(images)
        return (normalise(images), *rest)


def crop_and_mirror(images: Tensor, *, padding: int = PADDING) -> Tensor:
    """Pad each image by zeros, cut out its size at a random place, and mirror it left to right half of the time.

    Every place and both sides are equally likely, and each image is drawn by itself.

    Args:
        images: Images of shape (B, C, H, W), of any type.
        padding: Zeros to add on every side (pixels), >= 0.

    Example:
        >>> image = torch.tensor([[[[1, 2, 3]]]])
        >>> crop_and_mirror(image, padding=0).flatten().tolist() in ([1, 2, 3], [3, 2, 1])
        True
    """
    count, _, height, width = images.shape
    device = images.device
    top, left = torch.randint(2 * padding + 1, (2, count, 1), device=device)
    mirrored = torch.randint(2, (count, 1), dtype=torch.bool, device=device)
    columns = torch.arange(width, device=device)
    rows = top + torch.arange(height, device=device)
    columns = left + torch.where(mirrored, columns.flip(0), columns)
    padded = F.pad(images, (padding,) * 4).movedim(
        1, -1
    )  # colours last, so that one index takes all colours of a pixel
    image = torch.arange(count, device=device).view(-1, 1, 1)
    return padded[image, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def normalise(images: Tensor) -> Tensor:
    """Turn bytes into float32 with mean 0 and standard deviation 1 for each colour of the training images.

    Args:
        images: Images of shape (B, 3, H, W) with values 0..255.

    Example:
        >>> normalise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
        tensor([1.8426, 2.0012, 2.0254])
    """
    mean, std = _statistics(images.device)
    return images.float().div_(255).sub_(mean).div_(std)


@cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and deviation on a device; the cache spares each batch a copy, which would wait for the device."""
    mean, std = torch.tensor([MEAN, STD], device=device).view(2, 3, 1, 1)
    return mean, std


def _read(root: str | os.PathLike[str], *, train: bool, download: bool = False) -> tuple[Tensor, Tensor]:
    """Return images (N, 3, 32, 32) as bytes, and classes."""
    try:
        from torchvision.datasets import CIFAR100
    except ImportError as error:
        raise ImportError(
            'CIFAR100DataModule reads CIFAR-100 through torchvision: pip install "lightning_kd[cifar]"'
        ) from error
    data = CIFAR100(root=os.fspath(root), train=train, download=download)
    images = torch.as_tensor(data.data).permute(0, 3, 1, 2).contiguous()
    return images, torch.as_tensor(data.targets, dtype=torch.long)
