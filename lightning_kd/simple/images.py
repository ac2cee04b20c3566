"""How ``distill`` shows images to both networks: those of a folder, and those that a user brings."""

import os
from dataclasses import dataclass
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from lightning_kd.capture.rows import leaves_of
from lightning_kd.data.images import IMAGENET_MEAN, IMAGENET_STD, Augmentation, ImageFolder
from lightning_kd.named.wanted import Wanted, wanted_by
from lightning_kd.teachers.inputs import Chain, Renormalize, Resize, TeacherInputs
from lightning_kd.teachers.normalisation import Statistics

_SIZE = 224
_CROPS: dict[Augmentation, str] = {
    "none": "as they are",
    "crop": "in random crops of 50 to 100 % of their area, not mirrored",
    "crop_and_mirror": "in random crops of 50 to 100 % of their area, mirrored half of the time",
}
_ZEROS = "[0, 0, 0]"
_RAW = {1: "[1, 1, 1]", 255: "[1 / 255, 1 / 255, 1 / 255]"}
"""The deviation of images that are not normalised, by where their values end."""


def folder_of(given: Any, like: Any = None) -> Any:
    """Return the images of a folder, where a path is given; anything else as it is.

    Args:
        given: What a user gave as data.
        like: The training data, whose classes held-out images have.
    """
    if not isinstance(given, str | os.PathLike):
        return given
    images = images_of(like)
    made = ImageFolder(given, classes=None if images is None else images.classes)
    for line in made.files.told:
        rank_zero_info(line)
    return made


def images_of(data: Any) -> ImageFolder | None:
    """Return the images of a folder that data is made of, inside a loader or a subset too; ``None`` if there are none.

    Args:
        data: A data set, or a loader of one.
    """
    while isinstance(data, DataLoader | Subset):
        data = data.dataset
    return data if isinstance(data, ImageFolder) else None


@dataclass(frozen=True, slots=True)
class Form:
    """The form in which the images of folders are read.

    Args:
        statistics: Mean and deviation of each colour.
        size: Height and width.
        whose: Whose numbers these are, in words.
    """

    statistics: Statistics
    size: tuple[int, int]
    whose: str

    def of(self, images: ImageFolder, augment: Augmentation) -> ImageFolder:
        """Return the images of a folder in this form."""
        mean, std = self.statistics
        return images.seen_as(size=self.size, mean=mean, std=std, augment=augment)

    @property
    def told(self) -> str:
        """What is said of it."""
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in self.statistics)
        return (
            f"Images: {self.size[0]} x {self.size[1]}, the middle part; normalised by mean {mean} and deviation {std}, "
            f"as {self.whose}. In training they are read {_CROPS['crop']}; both networks see the same crop."
        )


def form_of(student: nn.Module | None, teacher: nn.Module | None, images: ImageFolder | None = None) -> Form:
    """Return the form that the student wants of its images; what it does not tell is the teacher's or ImageNet's.

    Args:
        student: The student.
        teacher: The teacher.
        images: The images. Where neither network tells a size, they keep their own if it is that of all, and is no
            larger than ImageNet's; photographs of a camera would take memory and time that nobody has asked for.
    """
    mine, its = wanted_by(student), wanted_by(teacher)
    own = None if images is None else images.files.size
    size = mine.size or its.size or (own if own is not None and max(own) <= _SIZE else (_SIZE, _SIZE))
    if mine.statistics is not None:
        return Form(mine.statistics, size, "the student wants them")
    if its.statistics is not None:
        return Form(its.statistics, size, "the teacher wants them")
    imagenet = (list(IMAGENET_MEAN), list(IMAGENET_STD))
    return Form(imagenet, size, "those of ImageNet, since neither network tells what it wants")


def teacher_view(
    student: nn.Module,
    teacher: nn.Module | None,
    sample: Any,
    images: ImageFolder | None,
    told: list[str],
    *,
    by_name: bool,
) -> TeacherInputs | None:
    """Choose what makes the teacher's images of the student's, and say it.

    Args:
        student: The student.
        teacher: The teacher's network, ``None`` if there is none.
        sample: Two samples as a batch, ``None`` of a stream.
        images: The training data, if it is of a folder, so that it is known how it is normalised.
        told: Gets what is said.
        by_name: Whether the teacher was given by name, so that it was trained in the size that it tells; one of the
            user's own may have been trained further in another.

    Raises:
        ValueError: If the images have other colours than the teacher wants.
    """
    image = next((one for one in leaves_of(sample) if isinstance(one, Tensor) and one.ndim == 4), None)
    its = wanted_by(teacher)
    if teacher is None or image is None or not image.is_floating_point():
        return None
    if its.channels is not None and image.shape[1] != its.channels:
        raise ValueError(
            f"distill: the images have {image.shape[1]} colour channels, and the teacher wants {its.channels}. Give "
            "images with as many, or make them for it: teacher_inputs=a function on (args, kwargs)."
        )
    scaled = its.size is not None and (by_name or its.fixed) and tuple(image.shape[2:]) != its.size
    resize = Resize(its.size) if scaled and its.size is not None else None
    given = _assumed(wanted_by(student), its, image, resize, told) if images is None else (images.mean, images.std)
    parts: list[TeacherInputs] = [] if resize is None else [resize]
    if its.statistics is None:
        other = _remedy("mean, std, to_mean, to_std", resize)
        _tell(
            told,
            f"How the teacher's images were normalised is not known; it sees the student's. If they differ, {other}",
        )
    elif given is not None and given != its.statistics:
        parts.insert(0, Renormalize(*given, *its.statistics))
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in its.statistics)
        _tell(told, f"The teacher sees them normalised by mean {mean} and deviation {std} (Renormalize).")
    if resize is not None and its.size is not None:
        here = " x ".join(map(str, image.shape[2:]))
        _tell(told, f"The teacher sees them scaled from {here} to {its.size[0]} x {its.size[1]} (Resize).")
    return parts[0] if len(parts) == 1 else Chain(parts) if parts else None


def _assumed(mine: Wanted, its: Wanted, image: Tensor, resize: Resize | None, told: list[str]) -> Statistics | None:
    """Return how a user's images are taken to be normalised, and say it."""
    whose = "student" if mine.statistics is not None else "teacher"
    found = mine.statistics or its.statistics
    if found is None:
        return None
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in found)
    other = _remedy("mean, std, to_mean, to_std", resize)
    _tell(told, f"Your images are taken as the {whose} wants them: mean {mean}, deviation {std}. If not, {other}")
    low, high = float(image.min()), float(image.max())
    if low >= 0.0 and max(found[0]) > 0.0:
        to = "to_mean, to_std" if its.statistics is None else f"{its.statistics[0]}, {its.statistics[1]}"
        deviation = _RAW[255 if high > 8 else 1]  # normalised images end below 3
        rank_zero_warn(
            f"The first images have values from {low:.3g} to {high:.3g}, so they seem not to be normalised. Normalise "
            f"them, or {_remedy(f'{_ZEROS}, {deviation}, {to}', resize)}"
        )
    return found


def _remedy(numbers: str, resize: Resize | None) -> str:
    """Return how to say how images are normalised, with the scaling that is chosen besides."""
    view = f"Renormalize({numbers})"
    return f"give teacher_inputs={view if resize is None else f'Chain([{view}, Resize({resize.size})])'}."


def _tell(told: list[str], line: str) -> None:
    told.append(line)
    rank_zero_info(line)
