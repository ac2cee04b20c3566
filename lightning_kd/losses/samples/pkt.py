"""Probabilistic transfer (PKT): make samples neighbours that are neighbours for the teacher."""

from typing import Literal, final

import torch
from torch import Tensor, nn

from lightning_kd.losses.base import Layers, Layout, Shape, StepTensors
from lightning_kd.losses.checks import check_positive, check_rows, check_same_shape
from lightning_kd.losses.pairs import LayerPairLoss
from lightning_kd.losses.tensors import in_range, upcast_alike, wide, zero_of
from lightning_kd.projectors import LinearProjector
from lightning_kd.schedules import Scalar

Mode = Literal["cosine", "mmd", "moments"]


def pkt_loss(student: Tensor, teacher: Tensor, *, eps: float = 1e-7) -> Tensor:
    r"""Divergence of the student's neighbour probabilities from the teacher's (PKT).

    .. math::
        L = \frac{1}{B^2} \sum_{ij} p^t_{ij} \log \frac{p^t_{ij} + \epsilon}{p^s_{ij} + \epsilon}, \qquad
        p_{ij} = \frac{k_{ij}}{\sum_l k_{il}}, \quad
        k_{ij} = \tfrac{1}{2} \Big( \frac{x_i \cdot x_j}{(|x_i| + \epsilon)(|x_j| + \epsilon)} + 1 \Big)

    Follows the authors' code, which averages over all :math:`B^2` entries and counts a sample as its own neighbour;
    the paper sums over pairs of different samples. A sample of zeros has a finite gradient, where that code has NaN.

    Shape:
        - student: :math:`(B, ...)`, teacher: :math:`(B, ...)`; only the batch must agree.
        - Output: scalar :math:`()`.

    Args:
        student: Embeddings to train.
        teacher: Embeddings to imitate; no gradient reaches them.
        eps: Keeps norms and probabilities from 0, > 0.

    Raises:
        ValueError: If the batch sizes differ, a tensor has no axis beside the batch, or ``eps`` is not positive.

    Example:
        >>> student, teacher = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[1.0, 0.0], [-5.0, 0.0]])
        >>> pkt_loss(student, teacher)  # (2/3, 1/3) against (1, 0) in both rows: ln(3/2) / 2
        tensor(0.2027)

    Reference:
        Passalis & Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018,
        arXiv:1803.10837.
    """
    check_positive("pkt_loss", eps=eps)
    check_rows("pkt_loss", student, teacher)
    if student.numel() == 0:
        return zero_of(student)
    with torch.autocast(device_type=student.device.type, enabled=False):
        student_chances, teacher_chances = (_neighbours(one, eps) for one in upcast_alike(student, teacher.detach()))
        return (teacher_chances * ((teacher_chances + eps) / (student_chances + eps)).log()).mean()


def mmd_loss(student: Tensor, teacher: Tensor, *, bandwidth: float | None = None) -> Tensor:
    r"""Squared maximum mean discrepancy between two batches of embeddings, with a Gaussian kernel (MMD).

    .. math::
        L = \overline{k(s, s)} + \overline{k(t, t)} - 2\, \overline{k(s, t)}, \qquad
        k(x, y) = \exp\Big( -\frac{|x - y|^2}{2 \sigma^2} \Big)

    where a bar is the mean over all :math:`B^2` pairs, those of a sample with itself included: the biased estimate (V
    statistic), which is never negative, and 0 for equal batches in any order. All three terms are there; the second
    has no gradient. It compares the two clouds, not sample with sample. Computed in float64, which it needs near a
    match.

    Shape:
        - student: :math:`(B, ...)`, teacher: :math:`(B, ...)`; equal shapes.
        - Output: scalar :math:`()`, in [0, 2].

    Args:
        student: Embeddings to train.
        teacher: Embeddings to imitate; no gradient reaches them.
        bandwidth: Deviation of the gaussian kernel, > 0; by default that of the batch, whose square is the mean
            squared distance between student and teacher samples.

    Raises:
        ValueError: If the shapes differ, a tensor has no axis beside the batch, or ``bandwidth`` is not positive.

    Example:
        >>> student, teacher = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0]])
        >>> # (2 + 2 exp(-1/2)) / 4 + (2 + 2 exp(-9/2)) / 4 - 2 (1 + exp(-9/2) + exp(-1/2) + exp(-2)) / 4
        >>> mmd_loss(student, teacher, bandwidth=1.0)
        tensor(0.4323)

    Reference:
        Gretton et al., "A Kernel Two-Sample Test", JMLR 13, 2012.
    """
    if bandwidth is not None:
        check_positive("mmd_loss", bandwidth=bandwidth)
    if student.shape == teacher.shape and student.numel() == 0:
        return zero_of(student)
    student_rows, teacher_rows = (wide(rows) for rows in _rows("mmd_loss", student, teacher))
    with torch.autocast(device_type=student.device.type, enabled=False):
        pairs = ((student_rows, student_rows), (teacher_rows, teacher_rows), (student_rows, teacher_rows))
        own, other, cross = (_squared_distances(x, y) for x, y in pairs)
        variance = cross.detach().mean().clamp_min(1e-12) if bandwidth is None else bandwidth**2
        own, other, cross = ((squares / (-2 * variance)).exp().mean() for squares in (own, other, cross))
        return (own + other - 2 * cross).to(torch.promote_types(student.dtype, torch.float32))


def moment_matching_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Mean squared distance of the means, and of the covariances, of two batches of embeddings.

    .. math::
        L = \frac{1}{D} |\mu_s - \mu_t|^2 + \frac{1}{D^2} \lVert \Sigma_s - \Sigma_t \rVert_F^2, \qquad
        \mu = \frac{1}{B} \sum_i x_i, \quad \Sigma = \frac{1}{B} \sum_i (x_i - \mu)(x_i - \mu)^\top

    The covariances are the biased ones, so a single sample has zeros. Where the width D is more than the batch, they
    are never made: their distance comes from products of samples.

    Shape:
        - student: :math:`(B, ...)`, teacher: :math:`(B, ...)`; equal shapes.
        - Output: scalar :math:`()`, >= 0.

    Args:
        student: Embeddings to train.
        teacher: Embeddings to imitate; no gradient reaches them.

    Raises:
        ValueError: If the shapes differ, or a tensor has no axis beside the batch.

    Example:
        >>> student, teacher = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [5.0]])
        >>> moment_matching_loss(student, teacher)  # means 1 and 3, variances 1 and 4: 4 + 9
        tensor(13.)

    Reference:
        Li, Swersky & Zemel, "Generative Moment Matching Networks", ICML 2015, arXiv:1502.02761, match all moments at
        once; of Sun & Saenko, "Deep CORAL", ECCV 2016 Workshops, arXiv:1607.01719, are the covariances.
    """
    if student.shape == teacher.shape and student.numel() == 0:
        return zero_of(student)
    dtype = torch.promote_types(student.dtype, torch.float32)
    student, teacher = _rows("moment_matching_loss", student, teacher)
    with torch.autocast(device_type=student.device.type, enabled=False):
        size, width = student.shape
        means = (student.mean(dim=0) - teacher.mean(dim=0)).square().mean()
        student, teacher = student - student.mean(dim=0), teacher - teacher.mean(dim=0)
        if width > 2 * size:
            student, teacher = wide(student), wide(teacher)  # the three terms nearly cancel
            own, other, cross = student @ student.T, teacher @ teacher.T, student @ teacher.T
            squares = own.square().sum() + other.square().sum() - 2 * cross.square().sum()
        else:
            squares = (student.T @ student - teacher.T @ teacher).square().sum()
        return (means + squares / (size * width) ** 2).to(dtype)


@final
class PKTLoss(LayerPairLoss):
    """Make the distribution of the student's embeddings that of the teacher's (probabilistic transfer, PKT).

    By default the teacher's neighbours become the student's (mode ``"cosine"``, the published method): best for
    embeddings and retrieval, the widths may differ, and there is nothing to train beside the student. The two other
    modes compare the clouds of the two batches in one space: ``"mmd"`` as a whole, ``"moments"`` by mean and
    covariance. Where the widths differ they train a linear projector of the student. Large batches help. The losses of
    several pairs are added.

    Args:
        student: Dotted name of the student layer to read, or a list of them; by default the last features before the
            logits.
        teacher: Dotted name of the teacher layer for each student layer, in the same order.
        mode: What to compare: ``"cosine"``, ``"mmd"`` or ``"moments"``.
        eps: Keeps norms and probabilities from 0, > 0.
        bandwidth: Deviation of the gaussian kernel, > 0; by default that of the batch, whose square is the mean
            squared distance between student and teacher samples.
        gather: Whether the loss compares the samples of all processes, and its gradient is that of one process with the
            whole batch; if not, it compares each process's own, and the gradient is the mean of the processes'.
        layout: Order of the layers' axes, such as ``"NHWC"``, or that of each layer by its name; by default it is found
            at set-up.
        weight: Factor of this part in the total loss, >= 0. Published recipes use 30000 for ``"cosine"``.

    Raises:
        ValueError: If an option does not suit the mode, the layers do not pair up, or the weight is negative or not
            finite.
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
        mode: Mode = "cosine",
        eps: float = 1e-7,
        bandwidth: float | None = None,
        gather: bool = True,
        layout: Layout = None,
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(student, teacher, layout=layout, weight=weight)
        if mode not in ("cosine", "mmd", "moments"):
            raise ValueError(f"PKTLoss: expected mode 'cosine', 'mmd' or 'moments', got {mode!r}.")
        check_positive("PKTLoss", eps=eps)
        if bandwidth is not None:
            check_positive("PKTLoss", bandwidth=bandwidth)
            if mode != "mmd":
                raise ValueError(f"PKTLoss: bandwidth has no effect in the mode {mode!r}; use mode='mmd'.")
        self.mode: Mode = mode
        self.eps = eps
        self.bandwidth = bandwidth
        self.gather = gather
        self.projectors = nn.ModuleList()
        self.per_pair = () if mode == "cosine" else ("projectors",)

    def build_pair(self, student: Shape, teacher: Shape) -> tuple[nn.Module]:
        """Make the projector of one pair, where the widths differ."""
        if student[1:] == teacher[1:]:
            return (nn.Identity(),)
        if len(student) != 2 or len(teacher) != 2:
            raise ValueError(
                f"expected embeddings (B, C) or equal shapes, got student {student} and teacher {teacher}; name layers "
                "that return embeddings."
            )
        projector = LinearProjector()
        projector.build(student, teacher)
        return (projector,)

    def read_layers(self, role: Literal["student", "teacher"], step: StepTensors) -> Tensor | list[Tensor]:
        """Return the values of a role's layers; moments are means over what some text has, not over padding of all."""
        values = super().read_layers(role, step)
        mask = step.decoder_mask if self.of_decoder else step.mask
        if self.mode != "moments" or mask is None or mask.ndim != 2 or not self.reads_text:
            return values
        kept = mask.any(0)

        def short(value: Tensor) -> Tensor:
            return value[:, kept] if value.ndim == 3 and value.shape[1] == len(kept) else value

        return [short(value) for value in values] if isinstance(values, list) else short(values)

    def compare(self, student: Tensor, teacher: Tensor, projector: nn.Module | None = None) -> Tensor:
        """Compute the unweighted loss of one pair of embeddings: ``pkt_loss`` or what another mode is for."""
        if projector is None:
            return pkt_loss(student, teacher, eps=self.eps)
        if self.mode == "mmd":
            return mmd_loss(projector(student), teacher, bandwidth=self.bandwidth)
        return moment_matching_loss(projector(student), teacher)


def _rows(function: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both batches as rows around a common origin, which keeps small distances exact in float32 as well."""
    check_rows(function, student, teacher)
    check_same_shape(function, student, teacher, "bring the student to the teacher's width with a projector")
    student_rows, teacher_rows = (one.flatten(1) for one in upcast_alike(student, teacher.detach()))
    return student_rows - teacher_rows[:1], teacher_rows - teacher_rows[:1]


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    sizes = x.square().sum(dim=1).unsqueeze(1) + y.square().sum(dim=1)
    return (sizes - 2 * x @ y.T).clamp_min(0.0)


def _neighbours(features: Tensor, eps: float) -> Tensor:
    """Return the probability (B, B) that row i picks j as its neighbour."""
    rows = in_range(features.flatten(1), 2, dim=(1,))
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    rows = rows / (length + eps).masked_fill(length <= 1e-12, 1.0)  # else the gradient of zeros is 1 / eps
    kernel: Tensor = (rows @ rows.T + 1.0) / 2.0
    return kernel / kernel.sum(dim=1, keepdim=True)
