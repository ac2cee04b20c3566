"""Projectors: small trained layers that bring a student's features to the teacher's width."""

import copy
from abc import ABC, abstractmethod
from typing import ClassVar, final

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_kd.configurable import Configurable

Shape = tuple[int, ...]


class Projector(Configurable, nn.Module, ABC):
    """Maps a student's features to the teacher's width.

    A projector is constructed with its options only, and gets its layers from :meth:`build` once the sizes are known.
    A subclass stores every constructor argument under its own name, makes its layers in :meth:`make_layers`, and uses
    them in ``forward``.
    """

    axes: ClassVar[str] = ""
    """The axes of the features that the projector takes, such as ``"(B, C, H, W)"``; any if empty."""

    def __init__(self) -> None:
        super().__init__()
        self.built = False

    def build(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """Make the layers for the given sizes; called once, before the optimizer exists.

        Args:
            student_shape: Shape of the student's features, batch axis included.
            teacher_shape: Shape of the teacher's features, batch axis included.

        Raises:
            RuntimeError: If the projector is built already.
            ValueError: If it cannot lead from one shape to the other; the message names both and the remedy.
        """
        if self.built:
            raise RuntimeError(f"{type(self).__name__}: built already; make a new projector for each pair of layers.")
        self._check_axes(student_shape, teacher_shape)
        self.make_layers(student_shape, teacher_shape)
        self.built = True

    @abstractmethod
    def make_layers(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """Create the sub-modules; the number of axes has been checked.

        Args:
            student_shape: Shape of the student's features, batch axis included.
            teacher_shape: Shape of the teacher's features, batch axis included.
        """

    @abstractmethod
    def forward(self, student: Tensor) -> Tensor:
        """Project the student's features."""

    def extra_repr(self) -> str:
        """Show the options."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options().items())

    def check_built(self) -> None:
        """Raise a ``RuntimeError`` that names the remedy unless :meth:`build` was called."""
        if not self.built:
            raise RuntimeError(f"{type(self).__name__}: not built yet; call build(student_shape, teacher_shape) first.")

    def _check_axes(self, student_shape: Shape, teacher_shape: Shape) -> None:
        name = type(self).__name__
        _check_equal_ranks(name, student_shape, teacher_shape)
        if self.axes and len(student_shape) != self.axes.count(",") + 1:
            other = _BY_RANK.get(len(student_shape))
            remedy = f"use {other.__name__}" if other else "name layers with features (B, C), (B, N, C) or (B, C, H, W)"
            raise ValueError(
                f"{name}: expected features {self.axes}, got student {student_shape} and teacher {teacher_shape}; "
                f"{remedy}."
            )


class _ChannelProjector(Projector):
    """Linear map of the last axis."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.bias = bias

    def make_layers(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """Create the linear layer."""
        self.linear = nn.Linear(width(student_shape), width(teacher_shape), bias=self.bias)

    def forward(self, student: Tensor) -> Tensor:
        """Project the last axis of the student's features."""
        self.check_built()
        return self.linear(student)  # type: ignore[no-any-return]  # modules are called through Any


@final
class LinearProjector(_ChannelProjector):
    """Linear map of feature vectors ``(B, C)``.

    Args:
        bias: Add a trained offset.
    """

    axes = "(B, C)"


@final
class TokenProjector(_ChannelProjector):
    """The same linear map of every token of a sequence ``(B, N, C)``.

    Args:
        bias: Add a trained offset.
    """

    axes = "(B, N, C)"


@final
class ConvProjector(Projector):
    """1x1 convolution of feature maps ``(B, C, H, W)``, which keeps their height and width.

    Args:
        bias: Add a trained offset.
        norm: Follow with batch normalisation.
        activation: End with ReLU, for a teacher layer whose features are not negative.
    """

    axes = "(B, C, H, W)"

    def __init__(self, bias: bool = True, norm: bool = False, activation: bool = False) -> None:
        super().__init__()
        self.bias = bias
        self.norm = norm
        self.activation = activation

    def make_layers(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """Create the convolution, and the normalisation if wanted."""
        self.conv = nn.Conv2d(width(student_shape), width(teacher_shape), kernel_size=1, bias=self.bias)
        self.bn = nn.BatchNorm2d(width(teacher_shape)) if self.norm else nn.Identity()

    def forward(self, student: Tensor) -> Tensor:
        """Project ``(B, C, H, W)``."""
        self.check_built()
        projected: Tensor = self.bn(self.conv(student))
        return F.relu(projected) if self.activation else projected


@final
class ConvRegressor(Projector):
    """Convolution, batch normalisation and ReLU that also bring the map to the teacher's size (RepDistiller's ConvReg).

    The convolution is 1x1 for equal sizes, 3x3 with stride 2 for a student of twice the teacher's size, a transposed
    4x4 with stride 2 for half of it, and otherwise, for a larger student, one without padding that is just large
    enough. Height and width are both considered, where RepDistiller looks at the height alone.
    """

    axes = "(B, C, H, W)"

    def make_layers(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """Create the convolution that fits the two sizes, and the normalisation."""
        self.conv = _resizing_convolution(student_shape, teacher_shape)
        self.bn = nn.BatchNorm2d(width(teacher_shape))

    def forward(self, student: Tensor) -> Tensor:
        """Project ``(B, C, H, W)``."""
        self.check_built()
        return F.relu(self.bn(self.conv(student)))


@final
class IdentityProjector(Projector):
    """No projection, for features of equal width."""

    def make_layers(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """Check that there is nothing to project."""
        if width(student_shape) != width(teacher_shape):
            remedy = _BY_RANK.get(len(student_shape), ConvProjector).__name__
            raise ValueError(
                f"IdentityProjector: expected equal widths, got {width(student_shape)} of student {student_shape} and "
                f"{width(teacher_shape)} of teacher {teacher_shape}; use {remedy}."
            )

    def forward(self, student: Tensor) -> Tensor:
        """Return the features as they are."""
        self.check_built()
        return student


_BY_RANK: dict[int, type[LinearProjector | TokenProjector | ConvProjector]] = {
    2: LinearProjector,
    3: TokenProjector,
    4: ConvProjector,
}


def check_template(owner: str, projector: Projector | None) -> None:
    """Raise a ``ValueError`` if the projector that a loss is to copy for each pair of layers is built already."""
    if projector is not None and projector.built:
        raise ValueError(f"{owner}: expected a projector that is not built yet; the loss builds a copy for each pair.")


def default_projector(student_shape: Shape, teacher_shape: Shape, *, bias: bool = True) -> Projector:
    """Choose the linear projector, yet to be built, that suits the number of axes.

    Args:
        student_shape: Shape of the student's features, batch axis included: ``(B, C)``, ``(B, N, C)`` for tokens, or
            ``(B, C, H, W)`` for maps.
        teacher_shape: Shape of the teacher's features, with as many axes.
        bias: Add a trained offset.

    Raises:
        ValueError: If the two have another number of axes, or not the same.

    Example:
        >>> default_projector((8, 16, 32, 32), (8, 64, 32, 32))
        ConvProjector(bias=True, norm=False, activation=False)
    """
    _check_equal_ranks("default_projector", student_shape, teacher_shape)
    if len(student_shape) not in _BY_RANK:
        raise ValueError(
            "default_projector: expected features (B, C), (B, N, C) or (B, C, H, W), "
            f"got student {student_shape} and teacher {teacher_shape}; name other layers or give a projector."
        )
    return _BY_RANK[len(student_shape)](bias=bias)


def projector_between(
    template: Projector | None, student_shape: Shape, teacher_shape: Shape, *, bias: bool = True
) -> Projector:
    """Make the built projector of one pair: a copy of the given one, else none between equal widths, else a linear one.

    Args:
        template: Which projector to copy, not yet built; ``None`` chooses.
        student_shape: Shape of the student's features, batch axis included.
        teacher_shape: Shape of the teacher's features, with as many axes.
        bias: Whether a linear one adds a trained offset; of no use where the loss takes the mean out again.

    Raises:
        ValueError: If the projector cannot lead from one shape to the other.

    Example:
        >>> projector_between(None, (8, 16, 32, 32), (8, 16, 32, 32))
        IdentityProjector()
    """
    if template is not None:
        projector = copy.deepcopy(template)
    elif len(student_shape) == len(teacher_shape) in _BY_RANK and width(student_shape) == width(teacher_shape):
        projector = IdentityProjector()
    else:
        projector = default_projector(student_shape, teacher_shape, bias=bias)
    projector.build(student_shape, teacher_shape)
    return projector


def batch_norm_connector(student_shape: Shape, teacher_shape: Shape) -> ConvProjector:
    """Make the built projector of methods that compare features before the activation: 1x1 convolution and norm.

    The weights are drawn from a normal distribution of variance two over the teacher's channels, as in the code of OFD.

    Args:
        student_shape: Shape of the student's map ``(B, C, H, W)``.
        teacher_shape: Shape of the teacher's map.

    Raises:
        ValueError: If one is no map.
    """
    connector = ConvProjector(bias=False, norm=True)
    connector.build(student_shape, teacher_shape)
    nn.init.kaiming_normal_(connector.conv.weight, mode="fan_out", nonlinearity="relu")
    return connector


def width(shape: Shape) -> int:
    """Return the number of channels: the last axis of ``(B, N, C)``, axis 1 of anything else, 1 if there is none.

    Args:
        shape: Shape of features or logits, batch axis included.

    Example:
        >>> width((8, 16)), width((8, 16, 4, 4)), width((8, 197, 16))
        (16, 16, 16)
    """
    if len(shape) < 2:
        return 1
    return shape[2] if len(shape) == 3 else shape[1]


def _check_equal_ranks(function: str, student_shape: Shape, teacher_shape: Shape) -> None:
    if len(student_shape) != len(teacher_shape):
        raise ValueError(
            f"{function}: expected features with the same number of axes, got student {student_shape} "
            f"and teacher {teacher_shape}; name layers of the same kind."
        )


def _resizing_convolution(student_shape: Shape, teacher_shape: Shape) -> nn.Conv2d | nn.ConvTranspose2d:
    channels = width(student_shape), width(teacher_shape)
    (height, breadth), (to_height, to_breadth) = student_shape[2:], teacher_shape[2:]
    if (height, breadth) == (2 * to_height, 2 * to_breadth):
        return nn.Conv2d(*channels, kernel_size=3, stride=2, padding=1)
    if (2 * height, 2 * breadth) == (to_height, to_breadth):
        return nn.ConvTranspose2d(*channels, kernel_size=4, stride=2, padding=1)
    if height >= to_height and breadth >= to_breadth:
        return nn.Conv2d(*channels, kernel_size=(1 + height - to_height, 1 + breadth - to_breadth))
    raise ValueError(
        f"ConvRegressor: expected a student map that is at least as large as the teacher's, or half of it in height "
        f"and width, got student {student_shape} and teacher {teacher_shape}; use ConvProjector."
    )
