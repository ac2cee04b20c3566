"""Another view of the batch for the teacher, of ready parts that can be written in a configuration."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TypeAlias, final

import torch.nn.functional as F
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from lightning_kd.configurable import Configurable, describe, restore
from lightning_kd.teachers.normalisation import statistics_of

Inputs: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


class TeacherInputs(Configurable, ABC):
    """Makes the teacher's inputs of the student's; give it to a door as ``teacher_inputs=``.

    Or call it where you override ``teacher_inputs(batch, args, kwargs)``.
    """

    @property
    def ready(self) -> bool:
        """Whether it can be called, or has to see the networks first."""
        return True

    def see_networks(self, student: object, teacher: object) -> None:
        """Read what it needs of the networks; called before the first call if it is not ready.

        Args:
            student: The student.
            teacher: The teacher, ``None`` if it is no network.
        """

    @abstractmethod
    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
        """Return the teacher's (args, kwargs), given the student's, which stay as they are."""

    def of_batch(self, batch: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
        """Return the teacher's (args, kwargs), where more of the batch is needed than the student's; by default not."""
        return self(args, kwargs)


TeacherView: TypeAlias = TeacherInputs | Callable[[tuple[Any, ...], dict[str, Any]], Inputs]
"""A ready part, or a function of your own on (args, kwargs)."""


@final
class Chain(TeacherInputs):
    """Several views, one after the other.

    Args:
        parts: The views, in order.
    """

    def __init__(self, parts: Sequence[TeacherInputs]) -> None:
        self.parts = list(parts)

    @property
    def ready(self) -> bool:
        """Whether all of its parts are ready."""
        return all(part.ready for part in self.parts)

    def see_networks(self, student: object, teacher: object) -> None:
        """Show the networks to its parts."""
        for part in self.parts:
            part.see_networks(student, teacher)

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
        """Return what the last part makes of what those before it made."""
        for part in self.parts:
            args, kwargs = part(args, kwargs)
        return args, kwargs

    def of_batch(self, batch: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
        """Return what the last part makes of what those before it made."""
        for part in self.parts:
            args, kwargs = part.of_batch(batch, args, kwargs)
        return args, kwargs


@final
class Renormalize(TeacherInputs):
    r"""Images that were normalised for the student, as the teacher was trained to see them.

    .. math::
        x' = \frac{x \, \sigma + \mu - \mu'}{\sigma'}

    for every floating tensor :math:`(B, C, H, W)` among the inputs with as many channels as there are numbers.

    Numbers that are left out are read from the networks at set-up, where these tell them: timm's models do, by their
    ``pretrained_cfg``, and so do all that :func:`lightning_kd.named.pretrained` makes; torchvision's own models do not,
    but their weights do, see :meth:`between`.

    Args:
        mean: Mean of each channel that the student's images were normalised with; by default what the student says.
        std: Standard deviation of each channel; by default what the student says.
        to_mean: The teacher's mean; by default what the teacher says.
        to_std: The teacher's standard deviation; by default what the teacher says.

    Raises:
        ValueError: If a side gives only one of the two, the numbers of channels differ, or a deviation is not positive;
            at set-up, if a network does not tell; in a call, if no input is an image.

    Example:
        >>> import torch
        >>> view = Renormalize([0.5], [0.5], [0.0], [1.0])
        >>> (image,), _ = view((torch.tensor([[[[-1.0, 0.0, 1.0]]]]),), {})
        >>> image
        tensor([[[[0.0000, 0.5000, 1.0000]]]])
    """

    def __init__(
        self,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        to_mean: Sequence[float] | None = None,
        to_std: Sequence[float] | None = None,
    ) -> None:
        self.mean, self.std, self.to_mean, self.to_std = (
            None if numbers is None else [float(value) for value in numbers] for numbers in (mean, std, to_mean, to_std)
        )
        if (mean is None) != (std is None) or (to_mean is None) != (to_std is None):
            raise ValueError("Renormalize: expected mean and std together, and to_mean and to_std, or neither.")
        self._numbers: list[list[float]] | None = None
        if self.mean and self.std and self.to_mean and self.to_std:
            self._numbers = self._checked([self.mean, self.std, self.to_mean, self.to_std])

    @staticmethod
    def _checked(numbers: Sequence[Sequence[float]]) -> list[list[float]]:
        mean, std, to_mean, to_std = ([float(value) for value in one] for one in numbers)
        if len({len(one) for one in numbers}) > 1 or min(std + to_std) <= 0:
            raise ValueError(
                f"Renormalize: expected as many means as deviations > 0 on both sides, got mean {mean}, std {std}, "
                f"to_mean {to_mean} and to_std {to_std}."
            )
        return [mean, std, to_mean, to_std]

    @property
    def ready(self) -> bool:
        """Whether the numbers of both sides are known."""
        return self._numbers is not None

    def see_networks(self, student: object, teacher: object) -> None:
        """Read the numbers that were left out, and say which they are."""
        if self.ready:
            return
        own = _statistics(student) if self.mean is None or self.std is None else (self.mean, self.std)
        its = _statistics(teacher) if self.to_mean is None or self.to_std is None else (self.to_mean, self.to_std)
        self._numbers = self._checked([*own, *its])
        mean, std, to_mean, to_std = self._numbers
        rank_zero_info(
            f"Renormalize: the student's images have mean {mean} and deviation {std}, the teacher's {to_mean} and "
            f"{to_std}."
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
        if self._numbers is None:
            raise ValueError("Renormalize: expected mean, std, to_mean and to_std, since it has seen no networks.")
        return _map_images(self, args, kwargs, self._renormalized, len(self._numbers[0]))

    def _renormalized(self, image: Tensor) -> Tensor:
        assert self._numbers is not None, "checked in the call"
        mean, std, to_mean, to_std = self._numbers
        scale = [a / b for a, b in zip(std, to_std, strict=True)]
        shift = [(a - b) / c for a, b, c in zip(mean, to_mean, to_std, strict=True)]
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
            f"Renormalize: {type(of).__name__} does not tell its mean and std; write Renormalize(mean=[...], std=[...],"
            " to_mean=[...], to_std=[...]), or Renormalize.between(...) of a timm model, torchvision weights such as "
            "ResNet50_Weights.DEFAULT, an image processor, or (mean, std)."
        )
    return told


def as_view(given: TeacherView | Mapping[str, Any] | str | None) -> TeacherView | None:
    """Return what makes the teacher's inputs: a part, a function, or the part that a checkpoint describes.

    Raises:
        TypeError: If it cannot be called.
        ValueError: If a checkpoint was made with a function, which it cannot hold.
    """
    if isinstance(given, str):
        raise ValueError(
            f"The checkpoint was made with teacher_inputs={given}, a function that it does not hold; pass it again: "
            "teacher_inputs=..."
        )
    if isinstance(given, Mapping):
        made = restore(given, TeacherInputs)
        assert isinstance(made, TeacherInputs), "restore checks it"
        return made
    if given is not None and not callable(given):
        raise TypeError(
            f"Expected teacher_inputs to be a part such as Renormalize, Resize, Keys or Chain([...]), or a function "
            f"that returns the teacher's (args, kwargs), got {type(given).__name__}."
        )
    return given


def described(view: TeacherView) -> dict[str, object] | str:
    """Return a part as plain data, and the name of a function."""
    try:
        if isinstance(view, TeacherInputs):
            return describe(view)
    except TypeError:  # a part of the user's with arguments that are no plain data
        pass
    return getattr(view, "__qualname__", type(view).__name__)
