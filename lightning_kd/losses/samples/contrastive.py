"""Contrast within the batch (InfoNCE, triplet): make the teacher's embedding of the same sample the nearest."""

from abc import ABC
from collections.abc import Mapping
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.losses.base import DistillationLoss, Layout, Shape
from lightning_kd.losses.checks import check_positive, check_same_shape
from lightning_kd.losses.samples.embedding import embeddings
from lightning_kd.losses.tensors import in_range, unit, upcast_alike, wide, zero_of
from lightning_kd.schedules import Scalar


def info_nce_loss(student: Tensor, teacher: Tensor, *, temperature: float = 0.07, symmetric: bool = False) -> Tensor:
    r"""Cross entropy of picking, by cosine similarity, the teacher's embedding of the same sample (InfoNCE).

    .. math::
        L = -\frac{1}{B} \sum_i \log \frac{\exp(\cos(s_i, t_i) / \tau)}{\sum_j \exp(\cos(s_i, t_j) / \tau)}

    If ``symmetric``, the mean of this and of the same with student and teacher exchanged, as in CLIP.

    Shape:
        - student, teacher: :math:`(B, d)`.
        - Output: scalar :math:`()`, >= 0; of a batch of one it is 0.

    Args:
        student: Embeddings of the student.
        teacher: Embeddings of the teacher. They may come out of a trained layer, so a gradient reaches them; detach
            what that layer reads.
        temperature: Divides the cosine similarities, > 0.
        symmetric: Whether the teacher's embeddings pick the student's, too.

    Raises:
        ValueError: If the shapes differ or are not 2-D, or the temperature is not positive.

    Example:
        >>> student, teacher = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[1.0, 0.0], [-5.0, 0.0]])
        >>> info_nce_loss(student, teacher, temperature=2.0)  # (ln(1 + exp(-1)) + ln 2) / 2
        tensor(0.5032)
        >>> info_nce_loss(student, teacher, temperature=2.0, symmetric=True)
        tensor(0.4886)

        The second is the mean of the first and of ln(1 + exp(-1/2)), what each teacher embedding costs.

    Reference:
        van den Oord, Li & Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018,
        arXiv:1807.03748.
    """
    check_positive("info_nce_loss", temperature=temperature)
    _check_embeddings("info_nce_loss", student, teacher)
    if student.numel() == 0:
        return zero_of([student, teacher])
    with torch.autocast(device_type=student.device.type, enabled=False):
        student_rows, teacher_rows = (unit(in_range(x, 2, dim=(1,)), dim=1) for x in upcast_alike(student, teacher))
        cosines = student_rows @ teacher_rows.T
        value = _pick(cosines / temperature)
        return (value + _pick(cosines.T / temperature)) / 2 if symmetric else value


def triplet_loss(student: Tensor, teacher: Tensor, *, margin: float = 0.2) -> Tensor:
    r"""Hinge on how much nearer the teacher's embedding of the same sample is than the nearest other one (triplet).

    .. math::
        L = \frac{1}{B} \sum_i \max \Big( 0,\; m + |s_i - t_i|^2 - \min_{j \ne i} |s_i - t_j|^2 \Big)

    of vectors of length one: the anchor is the student's embedding, the negative is the hardest of the batch among the
    teacher's. Squared distances and margin as in FaceNet, which takes semi-hard negatives instead.

    Shape:
        - student, teacher: :math:`(B, d)`.
        - Output: scalar :math:`()`, >= 0; of a batch of one, which has no negatives, it is 0.

    Args:
        student: Embeddings of the student.
        teacher: Embeddings of the teacher. They may come out of a trained layer, so a gradient reaches them; detach
            what that layer reads.
        margin: By how much the squared distances must differ, > 0; they are at most 4.

    Raises:
        ValueError: If the shapes differ or are not 2-D, or the margin is not positive.

    Example:
        >>> student, teacher = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[3.0, 4.0], [-5.0, 0.0]])
        >>> triplet_loss(student, teacher, margin=0.5)  # (0 + max(0, .5 + 2 - .4)) / 2
        tensor(1.0500)

    Reference:
        Schroff, Kalenichenko & Philbin, "FaceNet: A Unified Embedding for Face Recognition and Clustering", CVPR 2015,
        arXiv:1503.03832.
    """
    check_positive("triplet_loss", margin=margin)
    _check_embeddings("triplet_loss", student, teacher)
    with torch.autocast(device_type=student.device.type, enabled=False):
        student_rows, teacher_rows = (unit(wide(embedding), dim=1) for embedding in (student, teacher))
        cosines = _shifted_cosines(student_rows, teacher_rows, student)
        if len(cosines) < 2:
            return cosines.sum() * 0.0
        own = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
        hardest = cosines.masked_fill(own, -torch.inf).amax(dim=1)
        return (margin + 2.0 * (hardest - cosines.diagonal())).clamp_min(0.0).mean()


class _EmbeddedPair(DistillationLoss, ABC):
    """A loss of two embeddings of the same width, made by a trained linear layer on each side."""

    reads = "embedding"
    relational = True
    compares_positions = False
    masking = "mean"
    dim: int

    def build(self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]) -> None:
        """Make the embeddings.

        Args:
            student_shapes: Shape of the named student layer.
            teacher_shapes: Shape of the named teacher layer.

        Raises:
            ValueError: If features have no axis beside the batch, or several layers are named.
        """
        self.student_embedding, self.teacher_embedding = embeddings(self, student_shapes, teacher_shapes, self.dim)

    def embed(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Embed the features of both sides."""
        return self.student_embedding(student), self.teacher_embedding(teacher.detach())


@final
class InfoNCELoss(_EmbeddedPair):
    """Make the student's embedding of a sample pick the teacher's out of the batch (InfoNCE, in-batch contrast).

    A linear layer on each side, both trained, embeds the features in the same width; the negatives are the other
    samples of the batch. Best for retrieval and for large batches, without the banks and row indices of ``CRDLoss``;
    weak for small batches, and it pushes apart samples of the same class.

    Args:
        student: Dotted name of the student layer to read; by default the last features before the logits.
        teacher: Dotted name of the teacher layer to read.
        dim: Width of the embeddings, >= 1.
        temperature: Divides the cosine similarities, > 0.
        symmetric: Whether the teacher's embeddings pick the student's, too.
        gather: Whether the loss compares the samples of all processes, and its gradient is that of one process with the
            whole batch; if not, it compares each process's own, and the gradient is the mean of the processes'.
        layout: Order of the layers' axes, such as ``"NHWC"``, or that of each layer by its name; by default it is found
            at set-up.
        weight: Factor of this part in the total loss, >= 0. There is no one published weight; start with 1.

    Raises:
        ValueError: If a number is out of its range, the layers do not pair up, or the weight is negative or not finite.
    """

    def __init__(
        self,
        student: str | None = None,
        teacher: str | None = None,
        *,
        dim: int = 128,
        temperature: Scalar = 0.07,
        symmetric: bool = False,
        gather: bool = True,
        layout: Layout = None,
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(student, teacher, layout=layout, weight=weight)
        check_positive("InfoNCELoss", dim=dim, temperature=temperature)
        self.dim = dim
        self.temperature = temperature
        self.symmetric = symmetric
        self.gather = gather

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the unweighted loss of one pair of features."""
        embedded_student, embedded_teacher = self.embed(student, teacher)
        temperature = self.now(self.temperature)
        return info_nce_loss(embedded_student, embedded_teacher, temperature=temperature, symmetric=self.symmetric)


@final
class TripletLoss(_EmbeddedPair):
    """Make the teacher's embedding of a sample nearer to the student's than any other of the batch (triplet).

    A linear layer on each side, both trained, embeds the features in the same width; the negative of a sample is the
    nearest teacher embedding of another sample of the batch. Best when only the nearest neighbours matter; samples
    that keep the margin give no gradient, and hard negatives of the same class give a misleading one.

    Args:
        student: Dotted name of the student layer to read; by default the last features before the logits.
        teacher: Dotted name of the teacher layer to read.
        dim: Width of the embeddings, >= 1.
        margin: By how much the squared distances must differ, > 0; they are at most 4.
        gather: Whether the loss compares the samples of all processes, and its gradient is that of one process with the
            whole batch; if not, it compares each process's own, and the gradient is the mean of the processes'.
        layout: Order of the layers' axes, such as ``"NHWC"``, or that of each layer by its name; by default it is found
            at set-up.
        weight: Factor of this part in the total loss, >= 0. There is no one published weight; start with 1.

    Raises:
        ValueError: If a number is out of its range, the layers do not pair up, or the weight is negative or not finite.
    """

    def __init__(
        self,
        student: str | None = None,
        teacher: str | None = None,
        *,
        dim: int = 128,
        margin: float = 0.2,
        gather: bool = True,
        layout: Layout = None,
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(student, teacher, layout=layout, weight=weight)
        check_positive("TripletLoss", dim=dim, margin=margin)
        self.dim = dim
        self.margin = margin
        self.gather = gather

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the unweighted loss of one pair of features."""
        return triplet_loss(*self.embed(student, teacher), margin=self.margin)


def _shifted_cosines(student: Tensor, teacher: Tensor, like: Tensor) -> Tensor:
    """Return the cosines (B, B) up to a constant of each row, which is chosen so that float32 is enough for them."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    middle, teacher = student.detach().mean(dim=0), teacher - teacher.detach().mean(dim=0)
    return (student - middle).to(dtype) @ teacher.to(dtype).T + (teacher @ middle).to(dtype)


def _pick(logits: Tensor) -> Tensor:
    """Cross entropy of picking the diagonal."""
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def _check_embeddings(function: str, student: Tensor, teacher: Tensor) -> None:
    check_same_shape(function, student, teacher, "embed both in the same width")
    if student.ndim != 2:
        raise ValueError(
            f"{function}: expected embeddings (B, d), got student {tuple(student.shape)} and teacher "
            f"{tuple(teacher.shape)}; flatten them."
        )
