"""Distillation of embeddings: make the student's embedding of each sample that of the teacher."""

from typing import Literal, final

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_kd.losses.base import Layers, Layout, Shape
from lightning_kd.losses.checks import check_same_shape
from lightning_kd.losses.pairs import LayerPairLoss
from lightning_kd.losses.tensors import unit, upcast_alike
from lightning_kd.projectors import Projector, check_template, projector_between
from lightning_kd.schedules import Scalar

Kind = Literal["cosine", "mse"]


def embedding_loss(student: Tensor, teacher: Tensor, *, kind: Kind = "cosine", normalize: bool = False) -> Tensor:
    r"""Distance of the student's embeddings from the teacher's, by angle or by value.

    .. math::
        L_{cosine} = \frac{1}{N} \sum_n \Big( 1 - \frac{s_n \cdot t_n}{\|s_n\| \, \|t_n\|} \Big), \qquad
        L_{mse} = \frac{1}{N D} \sum_n \|s_n - t_n\|^2

    over the :math:`N` samples, or samples times tokens, with :math:`D` numbers each. With ``normalize`` the squared
    distance is that of the embeddings brought to length one; the angle knows no length. An embedding of length 0 has
    no direction: its cosine is 0, and the gradient has an ordinary size.

    Shape:
        - student, teacher: :math:`(B, D)`, or tokens :math:`(B, N, D)`; equal shapes.
        - Output: scalar :math:`()`; for cosine in :math:`[0, 2]`, else >= 0.

    Args:
        student: Embeddings to train, already projected to the teacher's width.
        teacher: Embeddings to imitate; no gradient reaches them.
        kind: Which distance.
        normalize: Bring embeddings to length one before the squared distance.

    Raises:
        ValueError: If the shapes differ or are no embeddings, or ``kind`` is unknown.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0]])
        >>> embedding_loss(student, teacher)  # 1 - 3 / 5
        tensor(0.4000)
        >>> embedding_loss(student, teacher, kind="mse")  # (1 + 16) / 2
        tensor(8.5000)
        >>> embedding_loss(student, teacher, kind="mse", normalize=True)  # (.16 + .64) / 2
        tensor(0.4000)

    Reference:
        Sanh et al., "DistilBERT, a distilled version of BERT", 2019, arXiv:1910.01108 (``cosine``).
        Reimers & Gurevych, "Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation",
        EMNLP 2020, arXiv:2004.09813 (``mse``).
    """
    _check_kind("embedding_loss", kind)
    check_same_shape("embedding_loss", student, teacher, "bring the student to the teacher's width with a projector")
    if student.ndim not in (2, 3):
        raise ValueError(
            f"embedding_loss: expected embeddings (B, D) or (B, N, D), got student {tuple(student.shape)} and teacher "
            f"{tuple(teacher.shape)}; use HintLoss for feature maps."
        )
    student, teacher = upcast_alike(student, teacher.detach())
    if student.numel() == 0:
        return student.sum() * 0.0
    if kind == "cosine":
        return (1.0 - (unit(student, dim=-1) * unit(teacher, dim=-1)).sum(dim=-1)).mean()
    return F.mse_loss(unit(student, dim=-1), unit(teacher, dim=-1)) if normalize else F.mse_loss(student, teacher)


@final
class EmbeddingLoss(LayerPairLoss):
    """Make the student's embedding of each sample that of the teacher.

    For sentence encoders, retrieval and metric learning. Without named layers it reads the networks' output, unless a
    loss or the task takes the output for scores; then it reads the last features before it, and set-up says which.
    ``student="<output>", teacher="<output>"`` names the output, ``"<output.NAME>"`` one of several. On a layer of
    tokens it compares token with token, without padding, not the means of texts.

    An embedding of another width gets a trained projector, which is not exported with the student: the student's own
    embeddings then have the angles of the teacher's only as far as a linear map keeps them.

    Args:
        student: Dotted name of the student layer to read, or ``"<output>"``; by default what is said above.
        teacher: Dotted name of the teacher layer for the student layer.
        kind: Which distance.
        normalize: Bring embeddings to length one before the squared distance.
        layout: Order of the layers' axes, such as ``"LNC"``, or that of each layer by its name; by default it is found
            at set-up.
        weight: Factor of this part in the total loss, >= 0.
        projector: Which projector to copy, not yet built; by default none between equal widths, else a linear one.

    Raises:
        ValueError: If the layers do not pair up, ``kind`` is unknown, the projector is built already, or the weight is
            negative or not finite.
    """

    output_kind = "embeddings"
    reads = "embedding"
    masking = "pack"
    per_pair = ("projectors",)

    def __init__(
        self,
        student: Layers = None,
        teacher: Layers = None,
        *,
        kind: Kind = "cosine",
        normalize: bool = False,
        layout: Layout = None,
        weight: Scalar = 1.0,
        projector: Projector | None = None,
    ) -> None:
        super().__init__(student, teacher, layout=layout, weight=weight)
        _check_kind("EmbeddingLoss", kind)
        check_template("EmbeddingLoss", projector)
        self.kind: Kind = kind
        self.normalize = normalize
        self.projector = projector
        self.projectors = nn.ModuleList()

    def build_pair(self, student: Shape, teacher: Shape) -> tuple[nn.Module]:
        """Make the projector of one pair: a copy of the given one, or the one that suits the widths."""
        student, teacher = _without_positions(student), _without_positions(teacher)
        if len(student) != len(teacher) or len(student) not in (2, 3) or student[1:-1] != teacher[1:-1]:
            raise ValueError(
                f"expected embeddings (B, D), or (B, N, D) of as many tokens, got student {student} and teacher "
                f"{teacher}; name layers that return them, or use HintLoss for feature maps."
            )
        return (projector_between(self.projector, student, teacher),)

    def compare(self, student: Tensor, teacher: Tensor, projector: nn.Module) -> Tensor:
        """Compute the unweighted loss of one pair of embeddings, see ``embedding_loss``."""
        student, teacher = (one.flatten(1) if one.ndim > 3 else one for one in (student, teacher))
        return embedding_loss(projector(student), teacher, kind=self.kind, normalize=self.normalize)


def _without_positions(shape: Shape) -> Shape:
    """Return (B, D) for what a pooling over all positions returns, (B, D, 1, 1)."""
    return shape[:2] if len(shape) > 3 and set(shape[2:]) == {1} else shape


def _check_kind(function: str, kind: str) -> None:
    if kind not in ("cosine", "mse"):
        raise ValueError(f"{function}: expected kind 'cosine' or 'mse', got {kind!r}.")
