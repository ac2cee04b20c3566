"""Hybrid distillation: several losses as one, with a weight each, fixed or balanced while they train."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, cast, final

import torch
from torch import Tensor, nn

from lightning_kd.distributed.gather import mean_over_processes
from lightning_kd.losses.base import DistillationLoss, Shape, StepTensors
from lightning_kd.losses.features.hint import HintLoss
from lightning_kd.losses.logits.kd import KDLoss
from lightning_kd.losses.naming import names_of
from lightning_kd.schedules import Moment, Scalar, check_constants

Balance = Literal["none", "magnitude", "uncertainty"]


def hybrid_loss(values: Sequence[Tensor], weights: Sequence[float], log_variances: Tensor | None = None) -> Tensor:
    r"""Weighted sum of losses, each with its learned uncertainty if there is one.

    .. math::
        L = \sum_i w_i \, L_i \qquad \text{or} \qquad
        L = \sum_i w_i \left( e^{-s_i} L_i + \tfrac{1}{2} s_i \right)

    where :math:`s_i = \log \sigma_i^2` is learned. The second form is least at :math:`e^{s_i} = 2 L_i`, so that each
    loss comes to count one half.

    Shape:
        - values: scalars :math:`()`, one or more; log_variances: one number each.
        - Output: scalar :math:`()`.

    Args:
        values: The losses.
        weights: Factor of each, >= 0.
        log_variances: Learned logarithm of each loss's variance; none for the plain sum.

    Raises:
        ValueError: If there is no loss, or the numbers of losses, weights and variances differ.

    Example:
        >>> hybrid_loss([torch.tensor(3.0), torch.tensor(4.0)], [2.0, 0.5])
        tensor(8.)
        >>> values = [torch.tensor(3.0), torch.tensor(4.0)]
        >>> hybrid_loss(values, [1.0, 0.5], torch.tensor([0.0, 2.0]))  # 3 + (4 / e^2 + 1) / 2
        tensor(3.7707)

    Reference:
        Kendall, Gal & Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses", CVPR 2018, arXiv:1705.07115
        (``log_variances``, in the form for regression, half of the squared error included in the loss).
    """
    count = len(values)
    if not count or len(weights) != count or (log_variances is not None and log_variances.shape != (count,)):
        given = "none" if log_variances is None else tuple(log_variances.shape)
        raise ValueError(
            f"hybrid_loss: expected one weight, and one log-variance if any, for each loss, got {count} losses, "
            f"{len(weights)} weights and log_variances {given}."
        )
    if log_variances is None:
        terms = [weight * value for value, weight in zip(values, weights, strict=True)]
    else:
        terms = [
            weight * ((-spread).exp() * value + spread / 2)
            for value, weight, spread in zip(values, weights, log_variances, strict=True)
        ]
    return terms[0] if count == 1 else torch.stack(terms).sum()


@final
class HybridLoss(DistillationLoss):
    r"""Teach at several levels at once: any losses, hybrids included, added with their weights.

    Every loss keeps its own layers, temperature and parameters; the networks are run once for all of them. The task's
    own loss is not part of it: the module or callback adds that once, however deeply hybrids are nested.

    Best for getting the most out of a teacher. Key parameters: the weight of each loss. More to tune than one loss,
    which ``balance`` can take over: by ``"magnitude"`` each loss is divided by the running mean of its own size, so
    that the weights are shares; by ``"uncertainty"`` each has a trained variance (Kendall et al. 2018).

    Args:
        losses: The losses, each with its own weight; by default the class probabilities (KD) and the last feature map
            (hint).
        balance: Whether and how the losses are brought to a common size.
        momentum: Share of the old mean that is kept in each step, 0..1, for ``balance="magnitude"``.
        weight: Factor of this part in the total loss, >= 0.

    Raises:
        ValueError: If the list is empty, a loss is in it twice, or an option is out of its range.
        TypeError: If an element is not a loss.
    """

    pairs_layers = False
    replicated_buffers = ("means",)
    means: Tensor

    def __init__(
        self,
        losses: Sequence[DistillationLoss] | None = None,
        *,
        balance: Balance = "none",
        momentum: float = 0.99,
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(weight=weight)
        children = [KDLoss(weight=0.9), HintLoss()] if losses is None else list(losses)
        _check(children, balance, momentum)
        self.names = names_of(children)
        self.parts = nn.ModuleList(children)
        self.balance: Balance = balance
        self.momentum = momentum
        self.log_variances = nn.Parameter(torch.zeros(len(children))) if balance == "uncertainty" else None
        self.register_buffer("means", torch.zeros(len(children)), persistent=balance == "magnitude")

    @property
    def losses(self) -> "list[DistillationLoss]":
        """The losses, in the order in which they are added."""
        return [cast(DistillationLoss, child) for child in self.parts]

    @property
    def student_layers(self) -> tuple[str, ...]:
        """The union of the student layers that the losses read."""
        return tuple(dict.fromkeys(layer for loss in self.losses for layer in loss.student_layers))

    @property
    def teacher_layers(self) -> tuple[str, ...]:
        """The union of the teacher layers that the losses read."""
        return tuple(dict.fromkeys(layer for loss in self.losses for layer in loss.teacher_layers))

    @property
    def needs_teacher(self) -> bool:
        """Whether one of the losses reads anything of a teacher."""
        return any(loss.needs_teacher for loss in self.losses)

    @property
    def changes_over_time(self) -> bool:
        """Whether one of the losses, or the hybrid's own weight, changes over the run."""
        return super().changes_over_time or any(loss.changes_over_time for loss in self.losses)

    def leaves(self) -> Iterator[tuple[str, DistillationLoss]]:
        """Yield the losses that read layers or logits themselves, with their dotted names within this one."""
        for name, loss in zip(self.names, self.losses, strict=True):
            for inner, leaf in loss.leaves():
                yield (f"{name}.{inner}" if inner else name), leaf

    def set_moment(self, moment: Moment) -> None:
        """Tell every loss how far the run has come."""
        super().set_moment(moment)
        for loss in self.losses:
            loss.set_moment(moment)

    def trains_now(self, teacher_ready: bool) -> bool:
        """Whether any of the losses takes part."""
        return any(loss.trains_now(teacher_ready) for loss in self.losses)

    def build(self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]) -> None:
        """Build every loss.

        Args:
            student_shapes: Shape of each named student layer, and of the logits.
            teacher_shapes: The same for the teacher.

        Raises:
            ValueError: If the two sides of a loss cannot be compared.
        """
        for loss in self.losses:
            loss.build(student_shapes, teacher_shapes)

    def evaluate(self, step: StepTensors) -> Tensor:
        """Return the weighted sum of the losses that take part in this step."""
        value: Tensor = self(step)
        return value

    def forward(self, step: StepTensors) -> Tensor:
        """Compute the weighted sum of a step's losses, see ``hybrid_loss``."""
        active = [i for i, loss in enumerate(self.losses) if loss.trains_now(step.teacher_ready)]
        values = [self.losses[i].evaluate(step) for i in active]
        self.details = {self.names[i]: value.detach() for i, value in zip(active, values, strict=True)}
        weights = [self.losses[i].weight_now for i in active]
        if self.balance == "magnitude":
            values = self._balanced(active, values)
        spreads = None if self.log_variances is None else self.log_variances[active]
        return hybrid_loss(values, weights, spreads)

    def _balanced(self, active: list[int], values: list[Tensor]) -> list[Tensor]:
        """Divide every loss by the running mean of its size, over all processes."""
        means = self.means[active]
        if self.training and torch.is_grad_enabled():
            now = mean_over_processes(torch.stack([value.detach().abs() for value in values]).to(means))
            means = torch.where(means > 0, self.momentum * means + (1.0 - self.momentum) * now, now)
            self.means = self.means.index_copy(0, torch.tensor(active, device=means.device), means)
        means = torch.where(means > 0, means, 1.0)
        return [value / mean for value, mean in zip(values, means, strict=True)]


def _check(losses: Sequence[object], balance: str, momentum: float) -> None:
    if not losses:
        raise ValueError("HybridLoss: expected at least one loss, got an empty list.")
    for loss in losses:
        if not isinstance(loss, DistillationLoss):
            raise TypeError(
                f"HybridLoss: expected DistillationLoss components in losses, got {type(loss).__name__}; "
                "give the task's own loss to the module as task_loss."
            )
    if len({id(loss) for loss in losses}) < len(losses):
        raise ValueError("HybridLoss: the same loss object is in the list twice; construct it twice.")
    if balance not in ("none", "magnitude", "uncertainty"):
        raise ValueError(f"HybridLoss: expected balance 'none', 'magnitude' or 'uncertainty', got {balance!r}.")
    check_constants("HybridLoss", momentum=momentum)
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"HybridLoss: expected momentum in [0, 1), got {momentum}.")
