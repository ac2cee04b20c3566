"""What a task is: its kind, where its classes are, and which label means "none"; told by the task's loss.

The rules, in order:

1. a loss of torch, or a loss that holds one, names the kind (``_KINDS``);
2. of a loss that is written otherwise, the functions of torch that it calls name it (``LossWatch``): its loss
   functions, or those that compare outputs with each other, as losses of metric learning do;
3. what the distillation losses read names it (``DistillationLoss.output_kind``, or a loss of embeddings that reads the
   output);
4. else the kind is unknown, and ``Comparison`` looks at the types and shapes of output and target.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Kind = Literal["classes", "multilabel", "regression", "embeddings", "other"]
"""Class scores (of samples, pixels or tokens), a score for each label, values, vectors, or what no metric here fits."""

IGNORE_INDEX = -100
"""The id of a position without a label, where the task's loss names no other."""

_KINDS: tuple[tuple[Kind, tuple[type[nn.Module], ...]], ...] = (
    ("classes", (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)),
    ("multilabel", (nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss, nn.SoftMarginLoss)),
    ("regression", (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.GaussianNLLLoss)),
    ("embeddings", (nn.CosineEmbeddingLoss, nn.TripletMarginLoss, nn.TripletMarginWithDistanceLoss)),
    # probabilities, rates and sets of labels, which are read otherwise than scores
    ("other", (nn.BCELoss, nn.PoissonNLLLoss, nn.MultiLabelMarginLoss, nn.MarginRankingLoss, nn.CTCLoss, nn.KLDivLoss)),
)
_FUNCTIONS: dict[Any, Kind] = {
    F.cross_entropy: "classes",
    F.nll_loss: "classes",
    F.multi_margin_loss: "classes",
    F.binary_cross_entropy_with_logits: "multilabel",
    F.multilabel_soft_margin_loss: "multilabel",
    F.soft_margin_loss: "multilabel",
    F.mse_loss: "regression",
    F.l1_loss: "regression",
    F.smooth_l1_loss: "regression",
    F.huber_loss: "regression",
    F.gaussian_nll_loss: "regression",
    F.cosine_embedding_loss: "embeddings",
    F.triplet_margin_loss: "embeddings",
    F.binary_cross_entropy: "other",
    F.poisson_nll_loss: "other",
    F.multilabel_margin_loss: "other",
    F.margin_ranking_loss: "other",
    F.ctc_loss: "other",
    F.kl_div: "other",
}
_COMPARING = {"normalize", "cosine_similarity", "pairwise_distance", "cdist", "pdist"}
_PRODUCTS = {"matmul", "__matmul__", "__rmatmul__", "mm", "inner", "einsum"}
_OVER_CLASSES = {"softmax", "log_softmax", "logsumexp"}


@dataclass(frozen=True, slots=True)
class Task:
    """What is known of a task before its data is looked at.

    Args:
        kind: What the outputs are, ``None`` if not known.
        ignore_index: The id of a position without a label, ``None`` if nothing names one.
        class_axis: The axis of the classes in the outputs, ``None`` if the shapes are to tell.
    """

    kind: Kind | None = None
    ignore_index: int | None = None
    class_axis: int | None = None

    @classmethod
    def of_loss(cls, loss: nn.Module | str | None, *, called_directly: bool = True) -> Self:
        """Read a task's loss, or a module that may hold one.

        Args:
            loss: The module.
            called_directly: Whether the loss itself gets the logits and the target, as a ``task_loss`` does.

        Example:
            >>> Task.of_loss(nn.CrossEntropyLoss(ignore_index=255))
            Task(kind='classes', ignore_index=255, class_axis=1)
            >>> Task.of_loss(nn.BCEWithLogitsLoss()).kind
            'multilabel'
        """
        if loss == "model":  # the student's own, of which Hugging Face leaves out this label
            return cls(None, IGNORE_INDEX)
        if not isinstance(loss, nn.Module):  # none, or a function, whose calls tell
            return cls()
        found = [(kind, part) for part in loss.modules() for kind, types in _KINDS if isinstance(part, types)]
        # with weights of its own it may make scores of embeddings, as ArcFace does; what it calls tells
        scores = any(parameter.requires_grad for parameter in loss.parameters())
        kinds = set() if scores else {kind for kind, _ in found}
        marks = {mark for _, part in found if (mark := _mark(part)) is not None}
        own = _mark(loss)
        mark = own if own is not None else marks.pop() if len(marks) == 1 else None
        # a subclass with a forward of its own may turn the axes round
        direct = called_directly and type(loss).forward in (nn.CrossEntropyLoss.forward, nn.NLLLoss.forward)
        return cls(kinds.pop() if len(kinds) == 1 else None, mark, 1 if direct else None)

    def or_else(self, other: "Task") -> "Task":
        """Return this task, with what another one knows of what this one does not."""
        if self.kind is not None and other.kind is not None and self.kind != other.kind:
            return self
        mark = other.ignore_index if self.ignore_index is None else self.ignore_index
        return Task(self.kind or other.kind, mark, self.class_axis if self.class_axis is not None else other.class_axis)


class LossWatch(TorchFunctionMode):
    """Sees which of torch's loss functions are called in a block, for tasks whose loss is written in code.

    Example:
        >>> scores, ids = torch.zeros(2, 3), torch.tensor([0, 255])
        >>> with LossWatch() as watch:
        ...     loss = F.cross_entropy(scores, ids, ignore_index=255)
        >>> watch.task(scores)
        Task(kind='classes', ignore_index=255, class_axis=None)
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Kind, int | None, Tensor | None]] = []
        """Kind, id of what has no label, and first argument of each call."""
        self.compared: list[Tensor] = []
        """What was compared by row: by its directions, its distances, or its products with itself."""
        self.over_classes: list[Tensor] = []
        """What a softmax, or its logarithm, was taken of."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kind = _FUNCTIONS.get(func) if callable(func) and getattr(func, "__hash__", None) else None
        if kind is not None:
            mark = kwargs.get("ignore_index")
            given = args[0] if args else kwargs.get("input")
            self.calls.append((kind, mark if isinstance(mark, int) else None, given))
        else:
            self._note(func, args)
        return func(*args, **kwargs)

    def _note(self, func: Any, args: Any) -> None:
        """Note what tells losses of metric learning, which call no loss function of torch, from losses of classes."""
        name = getattr(func, "__name__", None)
        tensors = [each for each in args if isinstance(each, Tensor)]
        with_itself = name in _PRODUCTS and len({_address(each) for each in tensors}) < len(tensors)
        if name in _OVER_CLASSES:
            self.over_classes += tensors[:1]
        elif with_itself or name in _COMPARING:
            self.compared += tensors

    def task(self, logits: Tensor | None) -> Task:
        """Return what the calls tell; those that were given the logits, or as many values, count before others.

        Args:
            logits: The student's logits.
        """
        if self.compares(logits):
            return Task("embeddings")
        calls = [call for call in self.calls if logits is not None and _is_made_of(call[2], logits)] or self.calls
        if calls and logits is not None and not any(_may_score(call, logits) for call in calls):
            return Task("other")  # scores that the loss makes of the outputs, as ArcFace makes them of embeddings
        kinds = {kind for kind, _, _ in calls}
        marks = {mark for _, mark, _ in calls if mark is not None}
        if len(kinds) != 1:
            return Task()
        return Task(kinds.pop(), marks.pop() if len(marks) == 1 else None)

    def compares(self, logits: Tensor | None) -> bool:
        """Whether no loss function was called, and rows of the logits were compared instead of their classes."""
        if logits is None or logits.ndim != 2 or self.calls:
            return False
        # a square may hold products of rows with each other as well as class scores
        square = logits.shape[0] == logits.shape[1]
        of_classes = not square and any(each.shape[-1:] == logits.shape[-1:] for each in self.over_classes)
        return not of_classes and any(each.numel() == logits.numel() for each in self.compared)


def first_known(tasks: Iterable[Task]) -> Task:
    """Return the first of several tasks, with what the later ones know of what it does not."""
    known = Task()
    for task in tasks:
        known = known.or_else(task)
    return known


def _mark(loss: nn.Module) -> int | None:
    mark = getattr(loss, "ignore_index", None)
    return mark if isinstance(mark, int) else None


def _may_score(call: tuple[Kind, int | None, Tensor | None], logits: Tensor) -> bool:
    """Whether what a loss of classes was called with may be outputs, or some of their rows: it has as many classes."""
    kind, _, given = call
    if kind != "classes" or not isinstance(given, Tensor) or not given.ndim:
        return True
    return given.shape[1 if given.ndim > 1 else 0] in logits.shape


def _address(tensor: Tensor) -> int:
    """Where a tensor's numbers lie; its identity where it has no memory of its own, as within ``torch.func``."""
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return id(tensor)


def _is_made_of(tensor: Any, logits: Tensor) -> bool:
    return isinstance(tensor, Tensor) and (tensor is logits or tensor.numel() == logits.numel())


def out_of_range(ids: Tensor, classes: int) -> Tensor:
    """Return which ids name no class."""
    return (ids < 0) | (ids >= classes)


def holds_ids(target: Tensor) -> bool:
    """Whether a target's type can hold class ids."""
    return not (target.is_floating_point() or target.is_complex() or target.dtype == torch.bool)


def without_column(target: Tensor, logits: Tensor) -> Tensor:
    """Return class ids (B, 1) or (B, 1, H, W) without their axis of length 1; anything else as it is.

    Example:
        >>> without_column(torch.tensor([[2], [0]]), torch.zeros(2, 3))
        tensor([2, 0])
    """
    column = (*logits.shape[:1], 1, *logits.shape[2:])
    is_column = logits.ndim > 1 and target.shape == column != logits.shape and not target.is_floating_point()
    return target.squeeze(1) if is_column else target
