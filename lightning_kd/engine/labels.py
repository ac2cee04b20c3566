"""Class ids as losses want them, and the words for those that are out of range."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_NARROW = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32)


def as_class_ids(target: Tensor | None, logits: Tensor | None) -> Tensor | None:
    """Return class ids of another integer type as int64, which torch's losses want; anything else as it is.

    Args:
        target: What the batch gives. It holds class ids if it has the axes of the logits without that of the classes.
        logits: The student's logits.

    Example:
        >>> as_class_ids(torch.tensor([2, 0], dtype=torch.int16), torch.zeros(2, 3))
        tensor([2, 0])
    """
    if not isinstance(target, Tensor) or target.dtype not in _NARROW or logits is None:
        return target
    return target.long() if target.shape == logits.shape[:1] + logits.shape[2:] else target


@contextmanager
def words_for_labels(part: str, target: Tensor | None, logits: Tensor | None) -> Iterator[None]:
    """Say which class ids are out of range if that is why the block fails; torch tells an index only.

    Args:
        part: Which part of the loss is computed.
        target: The target that it reads.
        logits: The student's logits.

    Raises:
        ValueError: If class ids are out of range.
    """
    try:
        yield
    except (IndexError, RuntimeError) as error:
        told = str(error)
        if target is None or logits is None or logits.ndim < 2 or target.is_floating_point():
            raise
        classes = logits.shape[1]
        remedy = (
            f"Give ids from 0 to {classes - 1}, or -100 for samples without a label, or build the networks for more "
            "classes."
        )
        if "device-side assert" in told:  # after which nothing can be read from the device
            raise RuntimeError(
                f"{part} failed on the device, mostly because a class id is out of range: {told.splitlines()[0]} The "
                f"logits have {classes} classes. {remedy}"
            ) from error
        if "out of bounds" not in told:
            raise
        ids = target.unique().tolist()
        wrong = [i for i in ids if i != -100 and not 0 <= i < classes]
        if not wrong:
            raise
        raise ValueError(
            f"{part} reads class ids, and the batch holds {', '.join(map(str, wrong[:5]))}, but the logits have "
            f"{classes} classes. {remedy}"
        ) from error
