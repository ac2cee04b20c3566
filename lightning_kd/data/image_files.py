"""The images in a folder with their classes, looked at before anything is trained."""

import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
_MANY = 2000
"""From how many images on the look at them may take a second, so that it is told."""
_SHOWN = 3
_MAPPING_SHOWN = 20


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """What a folder of images holds.

    Args:
        folder: The folder.
        paths: The images, in the order of their rows.
        labels: The class of each image, ``None`` if the folder has no sub-folders for classes.
        classes: The name of each class, ``None`` without classes.
        told: What is said of it, a line each.
        size: Height and width of every image, ``None`` if they differ.
    """

    folder: Path
    paths: list[Path]
    labels: list[int] | None
    classes: list[str] | None
    told: list[str]
    size: tuple[int, int] | None = None


def find_images(folder: str | os.PathLike[str], classes: Sequence[str] | None = None) -> ImageFiles:
    """Find the images of a folder: a sub-folder for each class, or all in one folder without classes.

    Classes are in the order of their names; names that are all numbers are in the order of the numbers. Hidden files
    and files with other endings are left out, which is told.

    Args:
        folder: The folder.
        classes: The classes of other data, whose numbers these images get; by default those of the folder itself.

    Raises:
        FileNotFoundError: If there is no such folder.
        NotADirectoryError: If it is a file.
        ValueError: If it has no images, has images beside folders of classes, has a class that ``classes`` lacks, has
            one class only or an empty one where it gives the classes itself, or if an image cannot be read.
        ImportError: If Pillow is not installed.
    """
    root = Path(folder).expanduser()
    _check_folder(root, str(folder))
    rank_zero_info(f"Looking for images in {root} ...")
    top = sorted(entry for entry in root.iterdir() if not _is_hidden(entry.name))
    loose = [entry for entry in top if _is_image(entry)]
    below = [entry for entry in top if entry.is_dir()]
    images = {entry.name: list(_images_below(entry)) for entry in below}
    if not loose and not any(images.values()):
        raise ValueError(f"{root} holds no images. Images end in {', '.join(ENDINGS)}.")
    told = _told_left_out(root)
    if not any(images.values()):
        return _looked_at(ImageFiles(root, loose, None, None, [*told, f"{root}: {len(loose):,} images, no classes."]))
    if loose:
        raise ValueError(
            f"{root} has {len(loose)} images beside the folders {_some(images)}, so it cannot be told whether these are"
            f" classes. Move {loose[0].name!r} and the others into the folder of their class, or all images into one."
        )
    if classes is None:
        _check_classes(root, images)
        classes, mapping = in_order(images), True
    else:
        told, mapping = [*told, *_told_other(root, images, classes)], False
    labels = [number for number, name in enumerate(classes) for _ in images.get(name, ())]
    paths = [path for name in classes for path in images.get(name, ())]
    line = f"{root}: {len(paths):,} images of {len(classes)} classes"
    told.append(f"{line}: {_mapping(classes)}." if mapping else f"{line}, numbered as in the training data.")
    return _looked_at(ImageFiles(root, paths, labels, list(classes), told))


def in_order(names: Sequence[str] | dict[str, Any]) -> list[str]:
    """Return names in order; names that are all numbers in the order of the numbers.

    Example:
        >>> in_order(["10", "2", "0"]), in_order(["10", "2", "b"])
        (['0', '2', '10'], ['10', '2', 'b'])
    """
    if all(name.isascii() and name.isdigit() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def import_pillow() -> Any:
    """Import the part of Pillow that opens images, or raise an ``ImportError`` that names the extra."""
    try:
        return import_module("PIL.Image")
    except ImportError as error:
        raise ImportError("A folder of images is read by Pillow: pip install 'lightning_kd[images]'.") from error


def _check_folder(root: Path, given: str) -> None:
    if root.is_dir():
        return
    if root.exists():
        raise NotADirectoryError(
            f"{given!r} is a file. Give the folder that holds the images; unpack an archive first."
        )
    beside = [entry.name for entry in root.parent.iterdir() if entry.is_dir()] if root.parent.is_dir() else []
    near = difflib.get_close_matches(root.name, beside, n=1)
    hint = f" Did you mean {str(root.parent / near[0])!r}?" if near else ""
    raise FileNotFoundError(f"There is no folder {given!r} (looked for {root.absolute()}).{hint}")


def _check_classes(root: Path, images: dict[str, list[Path]]) -> None:
    splits = sorted(name for name in images if name.casefold() in _SPLITS)
    if len(splits) == len(images):
        held_out = next((name for name in splits if not name.casefold().startswith("train")), "val")
        trained = next((name for name in splits if name.casefold().startswith("train")), "train")
        raise ValueError(
            f"{root} holds {_some(splits)}, which are parts of the data and no classes. Give "
            f"train={str(root / trained)!r} and val={str(root / held_out)!r}."
        )
    empty = [name for name, paths in images.items() if not paths]
    if empty:
        raise ValueError(
            f"{root} has the folders {_some(empty)} without an image, which would be classes that nothing is learnt of."
            " Put images in, or take the folders away."
        )
    if len(images) == 1:
        (name,) = images
        raise ValueError(
            f"{root} has one class only, {name!r}, and there is nothing to tell apart. For images without classes give "
            f"the folder that holds them: {str(root / name)!r}."
        )


def _told_other(root: Path, images: dict[str, list[Path]], classes: Sequence[str]) -> list[str]:
    """Return what is said where the classes are those of other data."""
    new = [name for name, paths in images.items() if paths and name not in classes]
    if new:
        near = difflib.get_close_matches(new[0], classes, n=1)
        hint = f"; is {new[0]!r} to be {near[0]!r}?" if near else ""
        raise ValueError(
            f"{root} has the classes {_some(new)}, which the training data lacks; it has {_some(classes)}{hint} Name "
            "the folders alike, or leave these out."
        )
    missing = [name for name in classes if not images.get(name)]
    return [f"{root} has no images of the classes {_some(missing)}."] if missing else []


def _images_below(folder: Path) -> Iterator[Path]:
    """Yield the images of a folder and of all folders in it, in the order of their names; links are followed once."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else sorted(name for name in folders if not _is_hidden(name))
        if real not in seen:
            yield from (Path(place, name) for name in sorted(names) if not _is_hidden(name) and _has_ending(name))
        seen.add(real)


def _told_left_out(root: Path) -> list[str]:
    hidden = others = 0
    shown = ""
    for _, folders, names in os.walk(root):
        for name in names:
            hidden += _is_hidden(name)
            if not _is_hidden(name) and not _has_ending(name):
                others += 1
                shown = shown or name
        hidden += sum(map(_is_hidden, folders))
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
    parts = [f"{hidden} hidden"] if hidden else []
    parts += [f"{others} that do not end as images do, such as {shown!r}"] if others else []
    return [f"{root}: files are left out, {' and '.join(parts)}."] if parts else []


def _looked_at(found: ImageFiles) -> ImageFiles:
    """Return what was found, if every file begins as an image does; what lies behind is seen when it is read."""
    opened = import_pillow()
    if len(found.paths) >= _MANY:
        rank_zero_info(f"{found.folder}: looking at {len(found.paths):,} images ...")
    broken, sizes = [], set()
    for path in found.paths:
        try:
            with opened.open(path) as image:
                sizes.add((image.height, image.width))
        except Exception as error:  # Pillow's formats raise errors of many kinds
            broken.append((path, error))
    if broken:
        more = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        names = ", ".join(str(path.relative_to(found.folder)) for path, _ in broken[:_SHOWN])
        raise ValueError(
            f"{len(broken)} of {len(found.paths):,} images in {found.folder} cannot be read: {names}{more}. Put whole "
            "files in their place, or take them away."
        )
    return replace(found, size=sizes.pop() if len(sizes) == 1 else None)


def _mapping(classes: Sequence[str]) -> str:
    pairs = [f"{number} = {name!r}" for number, name in enumerate(classes)]
    if len(pairs) <= _MAPPING_SHOWN:
        return ", ".join(pairs)
    return ", ".join([*pairs[: _MAPPING_SHOWN - 1], "...", pairs[-1]])


def _some(names: Any) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more


def _is_image(entry: Path) -> bool:
    return _has_ending(entry.name) and entry.is_file()


def _has_ending(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))
