"""Correlation congruence (CC): keep the correlations between samples as they are for the teacher."""

import math
from collections.abc import Mapping
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_kd.losses.base import DistillationLoss, Layers, Layout, Shape
from lightning_kd.losses.checks import check_positive, check_rows, check_same_shape
from lightning_kd.losses.samples.embedding import flattened
from lightning_kd.losses.tensors import add_up, nonzero, pair_up, upcast_alike, wide, zero_of
from lightning_kd.schedules import Scalar

Variant = Literal["paper", "repdistiller"]
Kernel = Literal["gaussian", "bilinear"]
_SMALLEST_LENGTH = 1e-12


def cc_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    variant: Variant = "paper",
    kernel: Kernel = "gaussian",
    gamma: float = 0.4,
    order: int = 2,
) -> Tensor:
    r"""Distance between the correlations of the samples of a batch (correlation congruence, CC).

    .. math::
        L = \frac{1}{B^2} \sum_{ij} \big( K(s_i, s_j) - K(t_i, t_j) \big)^2, \qquad
        K(x, y) = e^{-2\gamma} \sum_{p=0}^{P} \frac{(2\gamma)^p}{p!} \, \langle \hat x, \hat y \rangle^p

    with :math:`\hat x` of length one: the Taylor series of the Gaussian kernel :math:`e^{-\gamma |\hat x - \hat y|^2}`
    up to order P. The bilinear kernel is :math:`\langle x, y \rangle` of the embeddings as they are. Both follow the
    paper and are computed in float64, which they need where the samples lie close together.

    RepDistiller's code computes something else: with :math:`\delta_i = |s_i - t_i|` it is the mean over neighbours in
    the batch of :math:`\langle \delta_i, \delta_{i+1} \rangle`, which depends on the order of the samples, and is 0
    here for a single one, where that code has NaN.

    Shape:
        - student: :math:`(B, ...)`, teacher: :math:`(B, ...)`; only the batch must agree, but ``"repdistiller"`` takes
          equal shapes.
        - Output: scalar :math:`()`, >= 0.

    Args:
        student: Embeddings to train.
        teacher: Embeddings to imitate; no gradient reaches them.
        variant: Whether to compare kernels as the paper does, or neighbours as RepDistiller's code does.
        kernel: The paper's kernel, ``"gaussian"`` or ``"bilinear"``.
        gamma: Sharpness of the gaussian kernel, > 0.
        order: Order of the gaussian kernel's Taylor series, >= 1.

    Raises:
        ValueError: If shapes do not match, a tensor has no axis beside the batch, or an option is none of these.

    Example:
        >>> student, teacher = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0]])
        >>> cc_loss(student, teacher, kernel="bilinear")  # (5, 3, 3, 9) against (1, 1, 1, 2): (16 + 4 + 4 + 49) / 4
        tensor(18.2500)
        >>> cc_loss(student, teacher, variant="repdistiller")  # <(1, 1), (2, 1)>
        tensor(3.)

    Reference:
        Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, arXiv:1904.01802.
    """
    _check_correlation("cc_loss", variant, kernel, gamma, order)
    return _correlation("cc_loss", student, teacher.detach(), variant, kernel, gamma, order)


@final
class CCLoss(DistillationLoss):
    """Keep the correlations between the samples of a batch as the teacher has them (correlation congruence, CC).

    Best beside a loss on single samples, and with large batches. As in the paper, kernels are compared: the widths may
    differ, and there is nothing to train beside the student. RepDistiller's variant embeds both networks' features in
    ``dim`` numbers by linear layers, and trains the two. The losses of several pairs are added.

    Args:
        student: Dotted name of the student layer to read, or a list of them; by default the last features before the
            logits.
        teacher: Dotted name of the teacher layer for each student layer, in the same order.
        variant: Whether to compare kernels as the paper does, or neighbours as RepDistiller's code does.
        kernel: The paper's kernel, ``"gaussian"`` or ``"bilinear"``.
        gamma: Sharpness of the gaussian kernel, > 0.
        order: Order of the gaussian kernel's Taylor series, >= 1.
        dim: Width of the trained embeddings, >= 1; by default none for the paper's variant, which would gain nothing
            from a teacher that can be trained, and 128 for RepDistiller's.
        gather: Whether the loss compares the samples of all processes, and its gradient is that of one process with the
            whole batch; if not, it compares each process's own, and the gradient is the mean of the processes'.
        layout: Order of the layers' axes, such as ``"NHWC"``, or that of each layer by its name; by default it is found
            at set-up.
        weight: Factor of this part in the total loss, >= 0. RepDistiller's recipes use 0.02.

    Raises:
        ValueError: If an option is none of these, the layers do not pair up, or the weight is negative or not finite.
    """

    reads = "embedding"
    relational = True
    compares_positions = False

    def __init__(
        self,
        student: Layers = None,
        teacher: Layers = None,
        *,
        variant: Variant = "paper",
        kernel: Kernel = "gaussian",
        gamma: float = 0.4,
        order: int = 2,
        dim: int | None = None,
        gather: bool = True,
        layout: Layout = None,
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(student, teacher, layout=layout, weight=weight)
        _check_correlation("CCLoss", variant, kernel, gamma, order)
        if dim is not None and (variant == "paper" or dim < 1):
            raise ValueError(
                f"CCLoss: expected dim >= 1 with variant='repdistiller', got {dim} with {variant!r}; the paper's "
                "kernels need no embedding."
            )
        self.variant: Variant = variant
        self.masking = "mean" if variant == "repdistiller" else "zero"  # an embedding is built for a fixed size
        self.kernel: Kernel = kernel
        self.gamma = gamma
        self.order = order
        self.dim = dim
        self.gather = gather
        self.student_embeddings, self.teacher_embeddings = nn.ModuleList(), nn.ModuleList()

    def build(self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]) -> None:
        """Make the linear embeddings that RepDistiller's variant trains.

        Args:
            student_shapes: Shape of each named student layer.
            teacher_shapes: Shape of each named teacher layer.

        Raises:
            RuntimeError: If the loss is built already.
        """
        if len(self.student_embeddings):
            raise RuntimeError("CCLoss: built already; construct a new one for other layers.")
        for layers, shapes, embeddings in (
            (self.student_layers, student_shapes, self.student_embeddings),
            (self.teacher_layers, teacher_shapes, self.teacher_embeddings),
        ):
            for layer in layers if self.variant == "repdistiller" else ():
                embeddings.append(nn.Linear(math.prod(shapes[layer][1:]), 128 if self.dim is None else self.dim))

    def forward(self, student: Tensor | list[Tensor], teacher: Tensor | list[Tensor]) -> Tensor:
        """Compute the unweighted loss of one pair of embeddings, or the sum over several."""
        pairs = [(s, t.detach()) for s, t in pair_up(student, teacher)]
        if self.variant == "repdistiller":
            embeddings = zip(self.student_embeddings, self.teacher_embeddings, pairs, strict=True)
            pairs = [(_embed(embed_s, s), _embed(embed_t, t)) for embed_s, embed_t, (s, t) in embeddings]
        options = self.variant, self.kernel, self.gamma, self.order
        return add_up([_correlation("CCLoss", s, t, *options) for s, t in pairs])


def _embed(embedding: nn.Module, features: Tensor) -> Tensor:
    """Embed features, whose format may be another than the weights' (a teacher has one of its own)."""
    assert isinstance(embedding, nn.Linear), "made by build"
    rows: Tensor = embedding(flattened(features, embedding.in_features).to(embedding.weight.dtype))
    return rows


def _correlation(
    function: str, student: Tensor, teacher: Tensor, variant: Variant, kernel: Kernel, gamma: float, order: int
) -> Tensor:
    """Return the loss of correlations; a gradient reaches both sides, as the teacher's embedding may be trained."""
    check_rows(function, student, teacher)
    if student.numel() == 0:
        return zero_of([student, teacher])
    with torch.autocast(device_type=student.device.type, enabled=False):
        if variant == "repdistiller":
            remedy = "embed both in the same width, as CCLoss does"
            check_same_shape(function, student, teacher, remedy)
            student, teacher = upcast_alike(student, teacher)
            gap = (student.flatten(1) - teacher.flatten(1)).abs()
            return (gap[:-1] * gap[1:]).sum() / max(len(gap) - 1, 1)
        student_kernel, teacher_kernel = (_kernels(one.flatten(1), kernel, gamma, order) for one in (student, teacher))
        return F.mse_loss(student_kernel, teacher_kernel).to(torch.promote_types(student.dtype, torch.float32))


def _kernels(rows: Tensor, kernel: Kernel, gamma: float, order: int) -> Tensor:
    """Return the kernel (B, B) of all pairs of rows."""
    rows = wide(rows)
    products = rows @ rows.T
    if kernel == "bilinear":
        return products
    lengths = nonzero(products.diagonal(), _SMALLEST_LENGTH**2).sqrt()
    cosines = products / (lengths.unsqueeze(1) * lengths)
    series = 1.0 + 2 * gamma / order * cosines
    for power in range(order - 1, 0, -1):  # Horner's scheme
        series = 1.0 + 2 * gamma / power * cosines * series
    return math.exp(-2 * gamma) * series


def _check_correlation(function: str, variant: str, kernel: str, gamma: float, order: int) -> None:
    if variant not in ("paper", "repdistiller"):
        raise ValueError(f"{function}: expected variant 'paper' or 'repdistiller', got {variant!r}.")
    if kernel not in ("gaussian", "bilinear"):
        raise ValueError(f"{function}: expected kernel 'gaussian' or 'bilinear', got {kernel!r}.")
    check_positive(function, gamma=gamma)
    if not isinstance(order, int) or order < 1:
        raise ValueError(f"{function}: expected a whole order >= 1, got {order!r}.")
