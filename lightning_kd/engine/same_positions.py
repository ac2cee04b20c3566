"""Whether the two layers of a pair hold the same positions at the same places: no windows, no rolled or turned maps."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_kd.capture.axes import Axes
from lightning_kd.capture.layout import View
from lightning_kd.capture.networks import original
from lightning_kd.capture.places import Places, rows_and_columns
from lightning_kd.losses.base import DistillationLoss


def check_same_positions(
    loss: DistillationLoss, sides: Mapping[str, str], views: Mapping[str, Mapping[str, View]], known: Mapping[str, Axes]
) -> None:
    """Refuse two layers that a loss would compare position by position, where the positions are others.

    What cannot be followed is taken to be in the order of the image.

    Args:
        loss: The loss.
        sides: The layer of each role, the student's and the teacher's.
        views: How the loss reads the layers of each role, by name.
        known: What is known of the axes of the layer of each role.

    Raises:
        ValueError: If the positions are known to be in another order.
    """
    seen = {role: _as_read(known[role].places, views[role][layer]) for role, layer in sides.items()}
    found = {role: one for role, one in seen.items() if one is not None}
    both = list(found.values())
    if len(both) == 2 and both[0].numbers.shape == both[1].numbers.shape:
        if _are_same(*both):
            return
        wrong = [role for role, one in found.items() if not _in_order(one, views[role][sides[role]])]
        wrong = wrong or list(found)  # windows, or tokens
    else:
        # a map that is resized, or compared with what is not known
        wrong = [role for role, one in found.items() if not _in_order(one, views[role][sides[role]])]
    if not wrong:
        return
    layers = [f"{role} layer {sides[role]!r} of shape {known[role].shape}" for role in wrong]
    around = " and ".join(repr(sides[role].rpartition(".")[0]) for role in wrong if "." in sides[role])
    remedy = f", such as {around} if that is the map again" if around else ""
    raise ValueError(
        f"{type(loss).__name__}, {' and '.join(layers)}: the positions are in another order than those of the other "
        "network's layer, because the map was rolled, turned, or cut into windows. Name a layer around it whose output "
        f"is the map of the image{remedy}."
    )


def check_one_size(loss: DistillationLoss, student: nn.Module) -> None:
    """Refuse to compare positions with a student that draws the size of its images anew in every step.

    The detectors of torchvision do so in training if ``min_size`` has several sizes. In eval mode, as the teacher is,
    they take the last.

    Args:
        loss: The loss.
        student: The student.

    Raises:
        ValueError: If the loss compares layers position by position, and the student draws.
    """
    if not (loss.pairs_layers and loss.compares_positions and loss.student_layers):
        return
    for part in original(student).modules():
        sizes = getattr(part, "min_size", None) if type(part).__name__ == "GeneralizedRCNNTransform" else None
        if isinstance(sizes, tuple | list) and len(set(sizes)) > 1:
            raise ValueError(
                f"{type(loss).__name__} compares maps position by position, but the student draws one of the sizes "
                f"min_size={tuple(sizes)} for the images of a step, and the teacher, in eval mode, takes the last: the "
                "two see different images. Build both with one min_size, and draw the size of the images in the data "
                "set, before both."
            )


def _as_read(places: Places | None, view: View) -> Places | None:
    """Return the positions in the order in which a loss reads them, without the axis of the channels."""
    if places is None or places.numbers.numel() == 0 or view.order == "NC" or len(view.order) != places.numbers.ndim:
        return None
    read = view(places.numbers)
    channel = read.ndim - 1 if read.ndim == 3 else 1
    numbers = read.select(channel, 0)
    if not bool((read == numbers.unsqueeze(channel)).all()):
        return None  # a channel of several positions
    if any(length > 1 and bool((numbers == numbers.narrow(i, 0, 1)).all()) for i, length in enumerate(numbers.shape)):
        return None  # what attention compares, or what was made of a whole picture
    return Places(numbers, places.sizes)


def _are_same(one: Places, other: Places) -> bool:
    """Whether two maps of equal size have the same positions, where both have any."""
    if len(one.sizes) != len(other.sizes):
        return True  # a sequence and a map: nothing is known of one in the other
    if one.numbers.ndim == 3 and min(int(one.numbers.min()), int(other.numbers.min())) < 0:
        return True  # an edge of padding, which is no other order
    ranks = list(zip(rows_and_columns(one), rows_and_columns(other), strict=True))
    both = (one.numbers >= 0) & (other.numbers >= 0)
    return all(torch.equal(mine[both], yours[both]) for mine, yours in ranks)


def _in_order(places: Places, view: View) -> bool:
    """Whether a map has rows from top to bottom and columns from left to right; of what is no map, nothing is known."""
    if places.numbers.ndim != 3 or len(places.sizes) != 2 or view.windows > 1:
        return True
    samples, rows, columns = (one[0] for one in rows_and_columns(places))
    if bool((samples != samples[0, 0]).any()) or bool((rows < 0).any()):
        return True  # several pictures of a sample, or an edge
    return _increases(rows) and _increases(columns.T)


def _increases(ranks: Tensor) -> bool:
    """Whether ranks increase from row to row, and are the same in all of a row."""
    return bool((ranks == ranks[:, :1]).all()) and bool((ranks[1:] > ranks[:-1]).all())
