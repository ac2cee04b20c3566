"""What a network wants of its images, and how many classes it has, as far as it tells."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from lightning_kd.capture.networks import original
from lightning_kd.teachers.normalisation import Statistics, statistics_of

TOLD = "pretrained_cfg"
"""Where timm's networks tell how they were trained; networks of other libraries are told to, here."""


class Wanted(NamedTuple):
    """How a network wants its images; ``None`` for what it does not tell.

    Args:
        statistics: Mean and deviation of each colour.
        size: Height and width in pixels.
        fixed: Whether it takes no other size.
    """

    statistics: Statistics | None
    size: tuple[int, int] | None
    fixed: bool = False

    @property
    def channels(self) -> int | None:
        """The number of colours."""
        return None if self.statistics is None else len(self.statistics[0])


def wanted_by(network: nn.Module | None) -> Wanted:
    """Return what a network wants of its images.

    Read are the ``pretrained_cfg`` of timm, which :func:`lightning_kd.named.pretrained` and
    :func:`lightning_kd.named.fresh` also give to the networks of torchvision and transformers, and for mean and
    deviation the image processor beside the weights of transformers.

    Args:
        network: The network, ``None`` of a teacher that is none.

    Example:
        >>> wanted_by(nn.Linear(2, 1))
        Wanted(statistics=None, size=None, fixed=False)
    """
    if network is None:
        return Wanted(None, None)
    # timm: the size that a network was made for; its pretrained_cfg keeps that of the weights
    made_for = getattr(getattr(original(network), "patch_embed", None), "img_size", None)
    fixed = isinstance(made_for, Sequence) and len(made_for) == 2
    size = made_for if fixed else _entry(network, "input_size")
    return Wanted(statistics_of(network), None if size is None else (int(size[-2]), int(size[-1])), fixed)


def classes_of(network: nn.Module | None) -> int | None:
    """Return how many classes a network by name has, 0 of one without a head, ``None`` if it does not tell.

    Example:
        >>> classes_of(nn.Linear(2, 1)) is None
        True
    """
    if network is None:
        return None
    number = getattr(original(network), "num_classes", None)  # timm: the head that is there, not that of the weights
    number = _entry(network, "num_classes") if not isinstance(number, int) else number
    return number if isinstance(number, int) else None


def tell(
    network: nn.Module,
    *,
    statistics: Statistics | None,
    size: Sequence[int] | None,
    classes: int | None,
    names: Sequence[str] | None,
) -> None:
    """Let a network tell in timm's way what it wants, so that every part of this package can read it.

    Args:
        network: The network, which gets an attribute.
        statistics: Mean and deviation of each colour.
        size: Height and width in pixels.
        classes: Its number of classes.
        names: Their names.
    """
    told: dict[str, Any] = {"num_classes": classes, "label_names": None if names is None else list(names)}
    if size is not None:
        told["input_size"] = (3 if statistics is None else len(statistics[0]), *size)
    if statistics is not None:
        told["mean"], told["std"] = map(tuple, statistics)
    setattr(network, TOLD, told)


def _entry(network: nn.Module, name: str) -> Any:
    config: Any = getattr(original(network), TOLD, None)
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
