"""Distillation by singular value decomposition (KD-SVD): relate the main directions of maps from layer to layer."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from lightning_kd.losses.base import DistillationLoss, Layers, Layout, Shape
from lightning_kd.losses.tensors import add_up, check_differentiated_once, nonzero, wide, zero_of
from lightning_kd.projectors import Projector, check_template, projector_between
from lightning_kd.schedules import Scalar, check_whole

_MORE = 3
"""So many more of the student's vectors are looked at than the teacher has."""
_ROUNDING, _EQUAL, _SMALLEST = 1e-5, 1e-10, 1e-12
"""Beside the largest: a singular value that is rounding, and a difference of two squares that is none; and what counts
as zero."""


def kdsvd_loss(
    student_bottom: Tensor, student_top: Tensor, teacher_bottom: Tensor, teacher_top: Tensor, *, k: int = 1
) -> Tensor:
    r"""Squared distance of how the main directions of two maps are related, in the student and the teacher (KD-SVD).

    .. math::
        L = \frac{1}{B} \sum_{b,i,c,c'} \big( K^s_{bicc'} - K^t_{bicc'} \big)^2, \qquad
        K_{icc'} = \exp\!\big( -(\sigma_i v_{ic} - \sigma'_i v'_{ic'})^2 / 8 \big)

    with :math:`v_i` the first :math:`k` right singular vectors of the map as a matrix :math:`(HW, C)`, one number a
    channel; :math:`v'` those of the other map; and :math:`\sigma` the teacher's singular values, of length one, for
    both networks. Of the student's first :math:`k + 3` vectors each of the teacher's takes the one of the largest
    cosine, with its sign. Follows RepDistiller's code, a sum over channels and vectors and the mean over the batch.

    The sign of a singular vector is arbitrary, and decides the value. The teacher's are turned so that their sum is not
    negative, which the code leaves to its library. A singular value below 1e-5 of the largest is rounding and has no
    vector. Vectors of equal values pass on no gradient between one another. The gradient cannot be differentiated once
    more.

    Shape:
        - student_bottom, teacher_bottom: :math:`(B, C_b, H, W)`, student_top, teacher_top: :math:`(B, C_t, H, W)`;
          heights and widths may differ.
        - Output: scalar :math:`()`, >= 0.

    Args:
        student_bottom: Map of the first layer to train, already projected to the teacher's channels.
        student_top: Map of the second layer to train, already projected to the teacher's channels.
        teacher_bottom: Map of the first layer to imitate; no gradient reaches it.
        teacher_top: Map of the second layer to imitate; no gradient reaches it.
        k: How many of the teacher's singular vectors are compared, >= 1.

    Raises:
        ValueError: If a map is not 4-D, batch sizes or channels differ, or ``k`` is below 1.

    Example:
        >>> up, right, slanted = (torch.tensor(v).reshape(1, 2, 1, 1) for v in ([0.0, 2.0], [3.0, 0.0], [6.0, 8.0]))
        >>> kdsvd_loss(up, slanted, up, right)  # from (0, 1) to (.6, .8), and from (0, 1) to (1, 0)
        tensor(0.0244)

    Reference:
        Lee, Kim & Song, "Self-supervised Knowledge Distillation Using Singular Value Decomposition", ECCV 2018,
        arXiv:1807.06819.
    """
    maps = (student_bottom, student_top, teacher_bottom, teacher_top)
    _check(maps, k)
    if student_bottom.numel() == 0:
        return zero_of([student_bottom, student_top])
    (student, teacher), (next_student, next_teacher) = (
        _directions(*pair, k) for pair in zip(maps[:2], maps[2:], strict=True)
    )
    value = (_kernel(student, next_student) - _kernel(teacher, next_teacher)).square().sum() / len(student_bottom)
    return value.to(torch.promote_types(student_top.dtype, torch.float32))


@final
class KDSVDLoss(DistillationLoss):
    """Relate the main directions of maps from layer to layer as the teacher does (singular value decomposition).

    For deep networks of the same layout, as flow is (``FSPLoss``), but without regard to the positions: a map becomes
    the direction in its channels that explains most of it. Every two neighbours in the list of layers are compared; the
    losses are added. It decomposes every map in every step, in float64, which is slow for many channels.

    Args:
        student: Dotted names of at least two student layers, from the first to the last; by default the last map of
            every resolution.
        teacher: Dotted name of the teacher layer for each student layer, in the same order.
        k: How many of the teacher's singular vectors are compared, >= 1.
        layout: Order of the layers' axes, such as ``"NHWC"``, or that of each layer by its name; by default it is found
            at set-up.
        weight: Factor of this part in the total loss, >= 0. Published recipes use 1.
        projector: Which projector to copy for each pair, not yet built; by default none between equal widths, else a
            1x1 convolution without offset.

    Raises:
        ValueError: If ``k`` is below 1, the layers do not pair up, the projector is built already, or the weight is
            negative or not finite.
    """

    reads = "maps"
    needs_maps = True
    masking = "zero"

    def __init__(
        self,
        student: Layers = None,
        teacher: Layers = None,
        *,
        k: int = 1,
        layout: Layout = None,
        weight: Scalar = 1.0,
        projector: Projector | None = None,
    ) -> None:
        super().__init__(student, teacher, layout=layout, weight=weight)
        _check_k("KDSVDLoss", k)
        check_template("KDSVDLoss", projector)
        self.k = k
        self.projector = projector
        self.projectors = nn.ModuleList()

    def build(self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]) -> None:
        """Make a projector wherever the channels differ.

        Args:
            student_shapes: Shape of each named student layer.
            teacher_shapes: Shape of each named teacher layer.

        Raises:
            ValueError: If there are fewer than two layers, or one returns no map.
        """
        names = zip(self.student_layers, self.teacher_layers, strict=True)
        pairs = [(student_shapes[student], teacher_shapes[teacher]) for student, teacher in names]
        if len(pairs) < 2 or any(len(shape) != 4 for pair in pairs for shape in pair):
            raise ValueError(
                f"KDSVDLoss: expected at least two layers of each network that return maps (B, C, H, W), got student "
                f"{[s for s, _ in pairs]} and teacher {[t for _, t in pairs]}; name two or more: "
                'KDSVDLoss(["layer1", "layer2"], ["layer1", "layer2"]).'
            )
        self.projectors.extend(projector_between(self.projector, *pair, bias=False) for pair in pairs)

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """Compute the unweighted loss, see ``kdsvd_loss``: the sum over neighbouring layers."""
        projected = [projector(features) for projector, features in zip(self.projectors, student, strict=True)]
        steps = zip(pairwise(projected), pairwise(teacher), strict=True)
        return add_up([kdsvd_loss(*mine, *its, k=self.k) for mine, its in steps])


def _kernel(bottom: Tensor, top: Tensor) -> Tensor:
    """Return how each channel of one map is related to each of another, (B, C_t, C_b, k)."""
    return torch.exp((top.unsqueeze(2) - bottom.unsqueeze(1)).square() / -8.0)


def _directions(student: Tensor, teacher: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the student's and the teacher's vectors (B, C, k), each as long as the teacher's singular value."""
    with torch.autocast(device_type=student.device.type, enabled=False), torch.no_grad():
        values, vectors = _decomposed(_matrix(teacher.detach()))
        turned = vectors * torch.where(vectors.sum(dim=1, keepdim=True) < 0, -1.0, 1.0)
        lengths = values / nonzero(torch.linalg.vector_norm(values[:, :k], dim=1, keepdim=True))
        guide = turned[:, :, :k] * lengths[:, None, :k]
    with torch.autocast(device_type=student.device.type, enabled=False):
        chosen: Tensor = cast(Any, _Chosen).apply(_matrix(student), turned[:, :, :k])
        return chosen * lengths[:, None, :k], guide


def _matrix(features: Tensor) -> Tensor:
    return wide(features).flatten(2).mT


def _decomposed(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return singular values (B, r), 0 where they are rounding, and right singular vectors (B, C, r), 0 there too.

    The vectors of a sample that is not finite are NaN, so that the loss is, which a fit tells; the decomposition would
    raise an error that names nothing.
    """
    broken = ~matrix.isfinite().flatten(1).all(dim=1)[:, None, None]
    _, values, vectors = torch.linalg.svd(matrix.masked_fill(broken, 0.0), full_matrices=False)
    there = values > (_ROUNDING * values[:, :1]).clamp_min(_SMALLEST)
    return values * there, (vectors.mT * there.unsqueeze(1)).masked_fill(broken, torch.nan)


class _Chosen(torch.autograd.Function):
    """Those of the first right singular vectors that are nearest to given directions, turned towards them."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, directions: Tensor) -> Tensor:
        values, vectors = _decomposed(matrix)
        cosines = vectors[:, :, : directions.shape[2] + _MORE].mT @ directions
        which = cosines.abs().argmax(dim=1, keepdim=True)
        signs = cosines.gather(1, which).sign()
        index = which.expand(-1, vectors.shape[1], -1)
        ctx.save_for_backward(matrix, values, vectors, which, signs)
        return vectors.gather(2, index) * signs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # G = X^T X has the eigenvectors v and eigenvalues l: dv_i = sum over j of v_j (v_j^T dG v_i) / (l_i - l_j)
        check_differentiated_once("kdsvd_loss")
        matrix, values, vectors, which, signs = ctx.saved_tensors
        squares = values.square()
        own = squares.gather(1, which.squeeze(1)).unsqueeze(1)  # (B, 1, k)
        gaps = own - squares.unsqueeze(2)  # (B, r, k)
        equal = gaps.abs() <= _EQUAL * squares[:, :1, None]
        inverse = torch.where(equal, 0.0, 1.0 / torch.where(equal, 1.0, gaps))
        grad = grad * signs
        inside = vectors.mT @ grad
        dead = own == 0
        outside = (grad - vectors @ inside) / torch.where(dead, 1.0, own)
        slope = torch.where(dead, 0.0, vectors @ (inverse * inside) + outside)  # (B, C, k)
        chosen = vectors.gather(2, which.expand(-1, vectors.shape[1], -1))
        return (matrix @ chosen) @ slope.mT + (matrix @ slope) @ chosen.mT, None


def _check(maps: tuple[Tensor, Tensor, Tensor, Tensor], k: int) -> None:
    _check_k("kdsvd_loss", k)
    student_bottom, student_top, teacher_bottom, teacher_top = maps
    pairs = ((student_bottom, teacher_bottom), (student_top, teacher_top))
    shapes = [tuple(one.shape) for one in maps]
    if (
        any(len(shape) != 4 for shape in shapes)
        or len({shape[0] for shape in shapes}) > 1
        or any(student.shape[1] != teacher.shape[1] for student, teacher in pairs)
    ):
        raise ValueError(
            f"kdsvd_loss: expected maps (B, C, H, W) of one batch with equal channels, got student {shapes[0]} and "
            f"{shapes[1]}, teacher {shapes[2]} and {shapes[3]}; bring the student to the teacher's channels with a "
            "projector."
        )


def _check_k(function: str, k: int) -> None:
    check_whole(function, "k", k, 1)
