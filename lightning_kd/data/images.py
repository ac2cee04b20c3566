"""Images of a folder as tensors: cut to a square, normalised, and cropped at random to train on."""

import copy
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Self, final, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_kd.data.image_files import find_images, import_pillow

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of red, green and blue in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)
AREA = (0.5, 1.0)
"""Which part of an image's area a random crop keeps."""
RATIO = (3 / 4, 4 / 3)
"""How much wider than the size a random crop is, before it is scaled to it."""

Augmentation = Literal["none", "crop", "crop_and_mirror"]


@final
class ImageFolder(Dataset[Any]):
    r"""Serve the images of a folder, with their classes where it has a sub-folder for each.

    An image is a float32 tensor of shape (C, H, W), :math:`(x - \mu) / \sigma` of colours x in [0, 1]. It is turned as
    its camera says, cut to the middle part that has the form of ``size``, and scaled to it. Classes are numbered in the
    order of their names, and names that are all numbers in the order of the numbers: 0, 1, 2, 10. A sample is (x, y),
    or x alone where the folder has no sub-folders.

    Args:
        folder: The folder: a sub-folder for each class, or images without classes.
        size: Height and width in pixels, or one number for both, >= 1.
        mean: Mean of each colour; one number makes grey images, three make coloured ones.
        std: Standard deviation of each colour, > 0.
        augment: What is drawn at random, anew each time that an image is read: nothing, a crop of 50 to 100 % of its
            area (the form changes by up to a third), or such a crop that is mirrored half of the time as well.
        classes: The classes of other data, whose numbers these images get, such as ``train.classes`` for held-out
            images; by default those of the folder.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the folder cannot be served as it is (see the message), or an option is out of its range; when a
            broken image is read.
        ImportError: If Pillow is not installed (the extra ``images``).

    Example:
        >>> train = ImageFolder("photos/train", size=64, augment="crop")  # doctest: +SKIP
        >>> val = ImageFolder("photos/val", size=64, classes=train.classes)  # doctest: +SKIP
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        size: int | Sequence[int] = 224,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        augment: Augmentation = "none",
        classes: Sequence[str] | None = None,
    ) -> None:
        self.size, self.mean, self.std, self.augment = _checked(size, mean, std, augment)
        self.files = find_images(folder, classes)

    @property
    def classes(self) -> list[str] | None:
        """The name of each class, ``None`` without classes."""
        return self.files.classes

    @property
    def targets(self) -> list[int] | None:
        """The class of each image, ``None`` without classes."""
        return self.files.labels

    def seen_as(
        self, *, size: int | Sequence[int], mean: Sequence[float], std: Sequence[float], augment: Augmentation
    ) -> Self:
        """Return the same images in another form; the folder is not looked at again."""
        other = copy.copy(self)
        other.size, other.mean, other.std, other.augment = _checked(size, mean, std, augment)
        return other

    def __len__(self) -> int:
        return len(self.files.paths)

    def __getitem__(self, index: int) -> Any:
        return self._sample(index, self._drawn())

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return the samples of a batch, read by several threads; what is drawn does not depend on how many."""
        draws = [self._drawn() for _ in indices]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            return list(threads.map(self._sample, indices, draws))

    def _drawn(self) -> list[float]:
        return [] if self.augment == "none" else torch.rand(5).tolist()

    def _sample(self, index: int, draws: list[float]) -> Any:
        image = self._image(self.files.paths[index], draws)
        return image if self.files.labels is None else (image, self.files.labels[index])

    def _image(self, path: Path, draws: list[float]) -> Tensor:
        pillow = import_pillow()
        height, width = self.size
        try:
            with pillow.open(path) as file:
                image = _upright(file, pillow).convert("L" if len(self.mean) == 1 else "RGB")
        except Exception as error:  # Pillow's formats raise errors of many kinds
            raise ValueError(
                f"The image {str(path)!r} cannot be read: {error}. Put a whole file in its place, or take it away."
            ) from None
        box = _box(image.size, width / height, draws)
        image = image.resize((width, height), pillow.Resampling.BILINEAR, box)
        if self.augment == "crop_and_mirror" and draws[4] < 0.5:
            image = image.transpose(pillow.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image, dtype=np.float32)).div_(255).reshape(height, width, -1)
        return pixels.sub_(torch.tensor(self.mean)).div_(torch.tensor(self.std)).permute(2, 0, 1).contiguous()


def _checked(
    size: int | Sequence[int], mean: Sequence[float], std: Sequence[float], augment: Augmentation
) -> tuple[tuple[int, int], list[float], list[float], Augmentation]:
    """Return the form of images, or say what of it cannot be."""
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1]))
    if min(height, width) < 1:
        raise ValueError(f"ImageFolder: expected size >= 1, got {size}.")
    if len(mean) != len(std) or len(mean) not in (1, 3) or min(std) <= 0:
        raise ValueError(
            f"ImageFolder: expected as many means as deviations > 0, of one or three colours, got mean {mean} and std "
            f"{std}."
        )
    if augment not in get_args(Augmentation):
        raise ValueError(f"ImageFolder: expected augment to be one of {list(get_args(Augmentation))}, got {augment!r}.")
    return (height, width), [float(v) for v in mean], [float(v) for v in std], augment


def _upright(image: Any, pillow: Any) -> Any:
    """Return an image turned as its camera says, with 8 bits a colour."""
    if image.mode.startswith("I;16"):  # Pillow would cut off all that is brighter than 255
        return pillow.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("it holds numbers of 32 bits, whose range is not known; write it with 8 or 16 bits")
    turned = {3: "ROTATE_180", 6: "ROTATE_270", 8: "ROTATE_90"}
    turned |= {2: "FLIP_LEFT_RIGHT", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 7: "TRANSVERSE"}
    turn = turned.get(image.getexif().get(0x0112))  # EXIF's tag of the orientation
    return image if turn is None else image.transpose(pillow.Transpose[turn])


def _box(size: tuple[int, int], ratio: float, draws: Sequence[float]) -> tuple[float, float, float, float]:
    """Return the part of an image that is kept: left, upper, right and lower edge.

    Args:
        size: Width and height of the image.
        ratio: Width by height of the part.
        draws: Numbers in [0, 1) for area, form and place of a random part; none for the largest part in the middle.

    Example:
        >>> _box((100, 60), 1.0, [])
        (20.0, 0.0, 80.0, 60.0)
        >>> _box((100, 100), 1.0, [0.0, 0.5, 1.0, 1.0])  # half of the area, of its form, at the lower right
        (29.289..., 29.289..., 100.0, 100.0)
    """
    width, height = size
    across, down = min(width, height * ratio), min(height, width / ratio)
    left, top = 0.5, 0.5
    if draws:
        area = width * height * (AREA[0] + (AREA[1] - AREA[0]) * draws[0])
        low, high = (math.log(ratio * bound) for bound in RATIO)
        form = math.exp(low + (high - low) * draws[1])
        across, down = min(width, math.sqrt(area * form)), min(height, math.sqrt(area / form))
        left, top = draws[2], draws[3]
    x, y = (width - across) * left, (height - down) * top
    return x, y, min(x + across, width), min(y + down, height)
