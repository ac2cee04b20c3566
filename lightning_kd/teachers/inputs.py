"""Another view of the batch for the teacher, of ready parts that can be written in a configuration."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self, final

import torch.nn.functional as F
from torch import Tensor

from lightning_kd.configurable import Configurable
from lightning_kd.teachers.normalisation import statistics_of

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


class TeacherInputs(Configurable, ABC):
    """Makes the teacher's inputs of the student's; call it in ``teacher_inputs(batch, args, kwargs)``."""

    @abstractmethod
    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
        """Return the teacher's (args, kwargs), given the student's, which stay as they are."""


@final
class Chain(TeacherInputs):
    """Several views, one after the other.

    Args:
        parts: The views, in order.
    """

    def __init__(self, parts: Sequence[TeacherInputs]) -> None:
        self.parts = list(parts)

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
        """Return what the last part makes of what those before it made."""
        for part in self.parts:
            args, kwargs = part(args, kwargs)
        return args, kwargs


@final
class Renormalize(TeacherInputs):
    r"""Images that were normalised for the student, as the teacher was trained to see them.

    .. math::
        x' = \frac{x \, \sigma + \mu - \mu'}{\sigma'}

    for every floating tensor :math:`(B, C, H, W)` among the inputs with as many channels as there are numbers.

    Args:
        mean: Mean of each channel that the student's images were normalised with.
        std: Standard deviation of each channel.
        to_mean: The teacher's mean.
        to_std: The teacher's standard deviation.

    Raises:
        ValueError: If the numbers of channels differ, or a deviation is not positive; in a call, if no input is an
            image.

    Example:
        >>> import torch
        >>> view = Renormalize([0.5], [0.5], [0.0], [1.0])
        >>> (image,), _ = view((torch.tensor([[[[-1.0, 0.0, 1.0]]]]),), {})
        >>> image
        tensor([[[[0.0000, 0.5000, 1.0000]]]])
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], to_mean: Sequence[float], to_std: Sequence[float]
    ) -> None:
        self.mean, self.std, self.to_mean, self.to_std = ([float(v) for v in x] for x in (mean, std, to_mean, to_std))
        sizes = {len(x) for x in (self.mean, self.std, self.to_mean, self.to_std)}
        if len(sizes) > 1 or min(self.std + self.to_std) <= 0:
            raise ValueError(
                f"Renormalize: expected as many means as deviations > 0 on both sides, got mean {mean}, std {std}, "
                f"to_mean {to_mean} and to_std {to_std}."
            )

    @classmethod
    def between(cls, student: object, teacher: object) -> Self:
        """Read the numbers of both sides.

        Args:
            student: A timm model (its ``pretrained_cfg``), torchvision weights (their ``transforms()``), an image
                processor of Hugging Face or a model with one in its folder, anything with ``mean`` and ``std``, or a
                pair of them.
            teacher: The same for the teacher.

        Raises:
            ValueError: If a side does not tell.

        Example:
            >>> Renormalize.between(([0.5], [0.5]), ([0.4], [0.2])).to_mean
            [0.4]
        """
        return cls(*_statistics(student), *_statistics(teacher))

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
        """Return the inputs with every image normalised anew."""
        return _map_images(self, args, kwargs, self._renormalized, len(self.mean))

    def _renormalized(self, image: Tensor) -> Tensor:
        scale = [a / b for a, b in zip(self.std, self.to_std, strict=True)]
        shift = [(a - b) / c for a, b, c in zip(self.mean, self.to_mean, self.to_std, strict=True)]
        factor, offset = (image.new_tensor(x).reshape(-1, 1, 1) for x in (scale, shift))
        return image * factor + offset


@final
class Resize(TeacherInputs):
    """Images of another size for the teacher, bilinear, of every floating tensor ``(B, C, H, W)`` among the inputs.

    Args:
        size: Height and width, or one number for both.
        antialias: Whether to smooth images that become smaller.

    Example:
        >>> import torch
        >>> (image,), _ = Resize(4)((torch.zeros(1, 3, 2, 2),), {})
        >>> image.shape
        torch.Size([1, 3, 4, 4])
    """

    def __init__(self, size: int | Sequence[int], antialias: bool = True) -> None:
        self.size = size if isinstance(size, int) else list(size)
        self.antialias = antialias

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
        """Return the inputs with every image at the new size."""
        size = [self.size, self.size] if isinstance(self.size, int) else self.size

        def resized(image: Tensor) -> Tensor:
            return F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=self.antialias)

        return _map_images(self, args, kwargs, resized)


@final
class Keys(TeacherInputs):
    """Other names of the teacher's named inputs.

    Args:
        rename: The teacher's name for some of the student's names.
        drop: Names that the teacher does not take.
        add: Plain values by name that the teacher takes besides.

    Raises:
        ValueError: In a call, if a name is not there.

    Example:
        >>> view = Keys(rename={"input_ids": "ids"}, drop=["segment"], add={"mode": "full"})
        >>> view((), {"input_ids": 1, "segment": 2})
        ((), {'ids': 1, 'mode': 'full'})
    """

    def __init__(
        self,
        rename: dict[str, str] | None = None,
        drop: Sequence[str] = (),
        add: dict[str, Any] | None = None,
    ) -> None:
        self.rename = rename or {}
        self.drop = list(drop)
        self.add = add or {}

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
        """Return the inputs under the teacher's names."""
        missing = [name for name in (*self.rename, *self.drop) if name not in kwargs]
        if missing:
            raise ValueError(f"Keys: the student was not called with {missing}, but with {list(kwargs)}.")
        kept = {self.rename.get(name, name): value for name, value in kwargs.items() if name not in self.drop}
        return args, kept | self.add


def _map_images(
    view: TeacherInputs,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    function: Callable[[Tensor], Tensor],
    channels: int | None = None,
) -> Inputs:
    found = 0

    def changed(value: Any) -> Any:
        nonlocal found
        if not isinstance(value, Tensor) or value.ndim != 4 or not value.is_floating_point():
            return value
        if channels is not None and value.shape[1] != channels:
            return value
        found += 1
        return function(value)

    made = tuple(map(changed, args)), {name: changed(value) for name, value in kwargs.items()}
    if not found:
        of = "" if channels is None else f" of {channels} channels"
        raise ValueError(f"{type(view).__name__}: none of the inputs is a batch of images (B, C, H, W){of}.")
    return made


def _statistics(of: Any) -> tuple[Sequence[float], Sequence[float]]:
    if isinstance(of, tuple | list) and len(of) == 2:
        return of[0], of[1]
    told = statistics_of(of)
    if told is None:
        raise ValueError(
            f"Renormalize: {type(of).__name__} does not tell its mean and std; give a timm model, torchvision weights "
            "such as ResNet50_Weights.DEFAULT, an image processor, or (mean, std)."
        )
    return told
