"""Relational distillation (RKD): keep the distances and angles between samples as they are for the teacher."""

import math
from typing import Any, cast, final

import torch
from torch import Tensor

from lightning_kd.losses.base import Layers, Layout
from lightning_kd.losses.checks import check_not_negative, check_rows
from lightning_kd.losses.pairs import LayerPairLoss
from lightning_kd.losses.tensors import check_differentiated_once, wide, zero_of
from lightning_kd.schedules import Scalar

_SMALLEST_SQUARE, _SMALLEST_LENGTH = 1e-12, 1e-12
"""The authors' bounds: of a squared distance, and of a length that is divided by to get an angle."""

_MANY, _TILE, _CORNERS = 512, 128, 8
"""From how many samples on to go by tiles, the side of a tile, and how many corners share a pass over one."""


def rkd_loss(student: Tensor, teacher: Tensor, *, distance_weight: float = 25.0, angle_weight: float = 50.0) -> Tensor:
    r"""Distance between the distances, and between the angles, of the samples of a batch (RKD).

    .. math::
        L = \frac{w_d}{B^2} \sum_{ij} h\Big(\frac{D^s_{ij}}{\bar D^s} - \frac{D^t_{ij}}{\bar D^t}\Big)
        + \frac{w_a}{B^3} \sum_{ijk} h\big(A^s_{ijk} - A^t_{ijk}\big), \qquad
        A_{ijk} = \Big\langle \frac{e_j - e_i}{|e_j - e_i|}, \frac{e_k - e_i}{|e_k - e_i|} \Big\rangle

    with :math:`D_{ij} = |e_i - e_j|`, at least 1e-6 for two samples, :math:`\bar D` its mean over pairs of different
    samples, and :math:`h(x) = x^2 / 2` for :math:`|x| < 1`, else :math:`|x| - 1/2`. Follows the authors' code, which
    averages over all entries, those of a sample with itself included; the paper sums over tuples of different samples.

    Lengths and angles come from one product of the centred samples, in float64, and the gradient is computed along
    with the value, a block of samples :math:`i` at a time: no (B, B, D) or (B, B, B) tensor exists. Two samples whose
    distance is lost in the rounding of float64 are equal: their angles are 0, and they send no gradient, where that
    code sends one of 1e12. The loss of a single sample is 0. The gradient cannot be differentiated once more.

    Shape:
        - student: :math:`(B, ...)`, teacher: :math:`(B, ...)`; only the batch must agree.
        - Output: scalar :math:`()`, >= 0.

    Args:
        student: Embeddings to train.
        teacher: Embeddings to imitate; no gradient reaches them.
        distance_weight: Factor of the distances, >= 0.
        angle_weight: Factor of the angles, >= 0.

    Raises:
        ValueError: If the batch sizes differ, a tensor has no axis beside the batch, or a factor is negative.

    Example:
        >>> student, teacher = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [1.0], [2.0]])
        >>> # distances 1, 3, 2 of mean 2 against 1, 2, 1 of mean 4/3: (1/4)^2 + 0 + (1/4)^2, twice, halved, over 9
        >>> rkd_loss(student, teacher, distance_weight=1.0)  # the angles agree
        tensor(0.0139)

    Reference:
        Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068.
    """
    check_not_negative("rkd_loss", distance_weight=distance_weight, angle_weight=angle_weight)
    check_rows("rkd_loss", student, teacher)
    if student.numel() == 0:
        return zero_of(student)
    with torch.autocast(device_type=student.device.type, enabled=False):
        student, teacher = (features.flatten(1) for features in (student, teacher.detach()))
        value: Tensor = cast(Any, _Relations).apply(student, teacher, distance_weight, angle_weight)
        return value


@final
class RKDLoss(LayerPairLoss):
    """Keep the distances and angles between the samples of a batch as the teacher has them (relational, RKD).

    Best for embeddings and retrieval: the widths may differ, turning, moving or scaling the embedding costs nothing,
    and there is nothing to train beside the student. Large batches help; the time grows with the cube of the batch.
    It says nothing about a sample by itself. The losses of several pairs are added.

    Args:
        student: Dotted name of the student layer to read, or a list of them; by default the last features before the
            logits.
        teacher: Dotted name of the teacher layer for each student layer, in the same order.
        distance_weight: Factor of the distances, >= 0.
        angle_weight: Factor of the angles, >= 0.
        gather: Whether the loss compares the samples of all processes, and its gradient is that of one process with the
            whole batch; if not, it compares each process's own, and the gradient is the mean of the processes'.
        layout: Order of the layers' axes, such as ``"NHWC"``, or that of each layer by its name; by default it is found
            at set-up.
        weight: Factor of this part in the total loss, >= 0. Published recipes use 1 with the factors 25 and 50.

    Raises:
        ValueError: If a factor or the weight is negative or not finite, or the layers do not pair up.
    """

    reads = "embedding"
    relational = True
    compares_positions = False
    masking = "zero"

    def __init__(
        self,
        student: Layers = None,
        teacher: Layers = None,
        *,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        gather: bool = True,
        layout: Layout = None,
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(student, teacher, layout=layout, weight=weight)
        check_not_negative("RKDLoss", distance_weight=distance_weight, angle_weight=angle_weight)
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight
        self.gather = gather

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the unweighted loss of one pair of embeddings, see ``rkd_loss``."""
        return rkd_loss(student, teacher, distance_weight=self.distance_weight, angle_weight=self.angle_weight)


class _Relations(torch.autograd.Function):
    """The loss of two batches of embeddings, with its gradient computed beside it."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, distance_weight: float, angle_weight: float) -> Tensor:
        student_rows = _centred(student)
        student_geometry, teacher_geometry = _geometry(student_rows), _geometry(_centred(teacher))
        value, slope = torch.zeros_like(student_geometry[0][0, 0]), torch.zeros_like(student_geometry[0])
        if len(student) > 1:
            for weight, part in ((distance_weight, _distances), (angle_weight, _angles)):
                if weight:
                    part_value, part_slope = part(*student_geometry, *teacher_geometry)
                    value, slope = value + weight * part_value, slope.add_(part_slope, alpha=weight)
        ctx.save_for_backward(((slope + slope.T) @ student_rows).to(student.dtype))
        return value.to(torch.promote_types(student.dtype, torch.float32))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        check_differentiated_once("rkd_loss")
        (gradient,) = ctx.saved_tensors
        return (grad * gradient).to(gradient.dtype), None, None, None


def _centred(features: Tensor) -> Tensor:
    rows = wide(features)
    return rows - rows.mean(dim=0)


def _geometry(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inner products (B, B) of the rows, and their squared distances, 0 where rounding leaves nothing."""
    products = rows @ rows.T
    sizes = products.diagonal()
    both = sizes.unsqueeze(1) + sizes
    squares = both - 2 * products
    noise = 64 * torch.finfo(products.dtype).eps
    return products, torch.where(squares > noise * both, squares, 0.0).fill_diagonal_(0.0)


def _distances(_: Tensor, squares: Tensor, __: Tensor, teacher_squares: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of the distances' part, and its slope along the inner products."""
    lengths, teacher_lengths = (_lengths(squared) for squared in (squares, teacher_squares))
    count = len(squares) * (len(squares) - 1)
    mean, teacher_mean = lengths.sum() / count, teacher_lengths.sum() / count
    difference = lengths / mean - teacher_lengths / teacher_mean
    steep = difference.clamp(-1.0, 1.0)
    value = (steep * (difference - steep / 2)).mean()
    by_length = (steep - (steep * lengths).sum() / mean / count) / mean / len(squares) ** 2
    by_square = torch.where(squares >= _SMALLEST_SQUARE, by_length / (2 * lengths.clamp_min(_SMALLEST_LENGTH)), 0.0)
    return value, _along_products(by_square)


def _angles(
    products: Tensor, squares: Tensor, teacher_products: Tensor, teacher_squares: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the mean of the angles' part, and its slope along the inner products, block by block of corners."""
    size = len(products)
    inverse, teacher_inverse = _inverse(squares), _inverse(teacher_squares)
    parts = _parts_by_tiles if size >= _MANY and products.device.type == "cpu" else _parts_by_corners
    value, slope, turns, by_corner = parts(products, inverse, teacher_products, teacher_inverse)
    by_square = -turns * torch.where(squares >= _SMALLEST_LENGTH**2, inverse.square(), 0.0)
    slope = slope - 2 * by_corner + by_corner.sum(dim=1).diag() + _along_products(by_square)
    return value / size**3, slope / size**3


def _parts_by_corners(
    products: Tensor, inverse: Tensor, teacher_products: Tensor, teacher_inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return four sums over the angles: their cost, its slopes, how it turns with a length, and the slopes by corner.

    All corners of a block have tables (B, B); the same three buffers serve all blocks.
    """
    size, step = len(products), _corners_at_once(products)
    value, slope = torch.zeros_like(products[0, 0]), torch.zeros_like(products)
    turns, sums = [], []
    buffers = [products.new_empty(min(step, size), size, size) for _ in range(3)]
    for start in range(0, size, step):
        block = slice(start, start + step)
        cosines, difference, steep = (buffer[: min(step, size - start)] for buffer in buffers)
        _cosines(products, inverse, block, cosines)
        _cosines(teacher_products, teacher_inverse, block, difference)
        torch.sub(cosines, difference, out=difference)
        torch.clamp(difference, -1.0, 1.0, out=steep)
        value = value + difference.sub_(steep, alpha=0.5).mul_(steep).sum()
        turns.append(cosines.mul_(steep).sum(dim=2))
        steep.mul_(inverse[block].unsqueeze(2)).mul_(inverse[block].unsqueeze(1))
        sums.append(steep.sum(dim=2))
        slope.add_(steep.sum(dim=0))
    return value, slope, torch.cat(turns), torch.cat(sums)


def _parts_by_tiles(
    products: Tensor, inverse: Tensor, teacher_products: Tensor, teacher_inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the same for many samples: tile by tile of j and k, which stay in a cache, and each pair (j, k) once."""
    size = len(products)
    value, slope = torch.zeros_like(products[0, 0]), torch.zeros_like(products)
    turns, sums = torch.zeros_like(products), torch.zeros_like(products)
    sides = [
        (p, v, v * (p - p.diagonal().unsqueeze(1) / 2))
        for p, v in ((products, inverse), (teacher_products, teacher_inverse))
    ]
    buffers = [products.new_empty(_CORNERS * _TILE**2) for _ in range(3)]
    for top in range(0, size, _TILE):
        for left in range(top, size, _TILE):
            rows, columns = slice(top, min(top + _TILE, size)), slice(left, min(left + _TILE, size))
            twice = 1.0 if top == left else 2.0
            for start in range(0, size, _CORNERS):
                corners = slice(start, min(start + _CORNERS, size))
                shape = [part.stop - part.start for part in (corners, rows, columns)]
                cosines, difference, steep = (buffer[: math.prod(shape)].view(shape) for buffer in buffers)
                for (table, inverses, legs), out in zip(sides, (cosines, difference), strict=True):
                    over_j, over_k = inverses[corners, rows].unsqueeze(2), inverses[corners, columns].unsqueeze(1)
                    torch.mul(table[rows, columns], over_j, out=out)
                    out.sub_(legs[corners, rows].unsqueeze(2)).mul_(over_k)
                    out.addcmul_(over_j, legs[corners, columns].unsqueeze(1), value=-1.0)
                over_j, over_k = inverse[corners, rows], inverse[corners, columns]
                torch.sub(cosines, difference, out=difference)
                torch.clamp(difference, -1.0, 1.0, out=steep)
                difference.sub_(steep, alpha=0.5)
                value.add_(torch.dot(difference.view(-1), steep.view(-1)), alpha=twice)
                cosines.mul_(steep)
                turns[corners, rows] += cosines.sum(dim=2)
                sums[corners, rows] += torch.bmm(steep, over_k.unsqueeze(2)).squeeze(2).mul_(over_j)
                if top != left:
                    turns[corners, columns] += cosines.sum(dim=1)
                    sums[corners, columns] += torch.bmm(over_j.unsqueeze(1), steep).squeeze(1).mul_(over_k)
                slope[rows, columns] += steep.mul_(over_j.unsqueeze(2)).mul_(over_k.unsqueeze(1)).sum(dim=0)
            if top != left:
                slope[columns, rows] = slope[rows, columns].T
    return value, slope, turns, sums


def _cosines(products: Tensor, inverse: Tensor, corners: slice, out: Tensor) -> None:
    """Compute the cosine (b, B, B) of the angle at each of b corners i between the ways to j and to k."""
    legs = products[corners] - products.diagonal()[corners].unsqueeze(1) / 2
    torch.sub(products, legs.unsqueeze(2), out=out)
    out.sub_(legs.unsqueeze(1))
    out.mul_(inverse[corners].unsqueeze(2)).mul_(inverse[corners].unsqueeze(1))


def _along_products(by_square: Tensor) -> Tensor:
    """Turn a slope along squared distances to one along the inner products that they are made of."""
    return (by_square.sum(dim=0) + by_square.sum(dim=1)).diag() - 2 * by_square


def _inverse(squares: Tensor) -> Tensor:
    return torch.where(squares > 0.0, squares.sqrt().clamp_min(_SMALLEST_LENGTH).reciprocal(), 0.0)


def _lengths(squares: Tensor) -> Tensor:
    return squares.clamp_min(_SMALLEST_SQUARE).sqrt().fill_diagonal_(0.0)


def _corners_at_once(products: Tensor) -> int:
    """Return how many tables (B, B) fit into a processor's cache, or keep an accelerator busy."""
    entries: int = 2**17 if products.device.type == "cpu" else 2**22
    return max(1, entries // products.numel())
