"""Self-distillation inside one network (BYOT): early stages learn to predict what the whole network predicts."""

from collections.abc import Mapping
from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_kd.distributed.gather import is_distributed
from lightning_kd.losses.base import LOGITS, DistillationLoss, Layers, Layout, Shape
from lightning_kd.losses.checks import check_positive
from lightning_kd.losses.logits.base import (
    IGNORE_INDEX,
    count_labels,
    cross_entropy_of_labelled,
    with_one_mark,
)
from lightning_kd.losses.tensors import add_up, exact_if_small, upcast, wide
from lightning_kd.metrics.task import without_column
from lightning_kd.schedules import Scalar, check_constants


def byot_loss(
    logits: Tensor,
    features: Tensor,
    deepest_logits: Tensor,
    deepest_features: Tensor,
    target: Tensor,
    *,
    temperature: float = 3.0,
    alpha: float = 0.3,
    hint_weight: float = 0.03,
) -> Tensor:
    r"""Loss of one early classifier against the label and the end of its own network (be your own teacher, BYOT).

    .. math::
        L = (1 - \alpha) \, \mathrm{CE}(z, y) + \alpha T^2 \, \mathrm{KL}\big(\sigma(z^d / T) \,\|\, \sigma(z / T)\big)
            + \frac{\lambda}{B} \sum_b \lVert f_b - f^d_b \rVert_2^2

    Follows the paper, with :math:`T^2` as in MMRazor's code, which takes the norm of the whole batch without the square
    for the last term; that depends on how the batch is split. Samples with the target -100 are unlabelled: they are
    left out of the cross-entropy, a mean over the others, and kept in the rest.

    Shape:
        - logits, deepest_logits: :math:`(B, K)`; features, deepest_features: :math:`(B, C)`; target: :math:`(B,)`.
        - Output: scalar :math:`()`, >= 0.

    Args:
        logits: Class scores of the early classifier.
        features: What the early classifier scores.
        deepest_logits: Class scores of the network itself; no gradient reaches them.
        deepest_features: The last features of the network itself; no gradient reaches them.
        target: Class of each sample, -100 for none.
        temperature: Softening of both distributions, > 0, no unit. The paper uses 3.
        alpha: Share of the divergence from the deepest classifier, 0..1; the rest is the label's. The paper uses 0.3.
        hint_weight: Factor of the squared distance of the features, >= 0. The paper uses 0.03.

    Raises:
        ValueError: If the shapes do not belong together, or a number is out of its range.

    Example:
        >>> import torch
        >>> logits, features = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 2.0]])
        >>> deepest_logits, deepest_features = torch.tensor([[6.0, 0.0]]), torch.tensor([[1.0, 5.0]])
        >>> label = torch.tensor([0])  # cross-entropy .693, divergence .328, squared distance 9
        >>> byot_loss(logits, features, deepest_logits, deepest_features, label, alpha=0.0, hint_weight=0.1)
        tensor(1.5931)
        >>> byot_loss(logits, features, deepest_logits, deepest_features, label, alpha=1.0, hint_weight=0.0)
        tensor(2.9503)

    Reference:
        Zhang et al., "Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self
        Distillation", ICCV 2019, arXiv:1905.08094.
    """
    _check_numbers("byot_loss", temperature, alpha, hint_weight)
    target = without_column(target, logits)
    _check_shapes(logits, features, deepest_logits, deepest_features, target)
    logits, features = upcast(logits), upcast(features)
    if len(logits) == 0:
        return logits.sum() * 0.0 + features.sum() * 0.0
    deepest_logits, deepest_features = upcast(deepest_logits.detach()), upcast(deepest_features.detach())
    label = cross_entropy_of_labelled(logits, target)
    divergence = exact_if_small(
        _divergence(logits, deepest_logits, temperature),
        1.0,
        temperature,
        lambda: _divergence(wide(logits), wide(deepest_logits), temperature),
    )
    divergence = divergence * temperature**2
    hint = (features - deepest_features).square().sum() / len(features)
    return (1.0 - alpha) * label + alpha * divergence + hint_weight * hint


@final
class BYOTLoss(DistillationLoss):
    """Let early stages learn to predict what the whole network predicts, without a teacher (be your own teacher, BYOT).

    Best for convolutional networks that are trained from the start and have no teacher. Every named layer but the last
    gets a classifier of its own: a bottleneck of three convolutions that leads to the size of the last map, average
    pooling, and a linear layer, as in the widely used public code. It learns the label, the network's own prediction,
    and its last features, which are averages over the last map; the losses of the classifiers are added. The network's
    own classifier learns from the task loss alone. Costs the classifiers' computation in training, nothing afterwards.

    Args:
        student: Dotted names of at least two layers, from the first to the last; by default the last map of every
            resolution.
        temperature: Softening of both distributions, > 0, no unit. The paper uses 3.
        alpha: Share of the divergence from the deepest classifier, 0..1; the rest is the label's. The paper uses 0.3.
        hint_weight: Factor of the squared distance of the features, >= 0. The paper uses 0.03.
        layout: Order of the layers' axes, such as ``"NHWC"``, or that of each layer by its name; by default it is found
            at set-up.
        weight: Factor of this part in the total loss, >= 0. Published recipes use 1 beside a task weight of 1.

    Raises:
        ValueError: If a layer is named twice, or a number is out of its range.
    """

    reads = "maps"
    needs_maps = True
    in_a_plane = True
    pairs_layers = False
    output_kind = "classes"
    needs_target = True
    means_over_labels = True
    needs_student_logits = True

    def __init__(
        self,
        student: Layers = None,
        *,
        temperature: Scalar = 3.0,
        alpha: float = 0.3,
        hint_weight: float = 0.03,
        layout: Layout = None,
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(student, layout=layout, weight=weight)
        _check_numbers("BYOTLoss", temperature, alpha, hint_weight)
        self.temperature = temperature
        self.alpha = alpha
        self.hint_weight = hint_weight
        self.classifiers = nn.ModuleList()

    def build(self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]) -> None:
        """Make a classifier for every layer but the last.

        Args:
            student_shapes: Shape of each named layer, and of the logits.
            teacher_shapes: Not looked at.

        Raises:
            ValueError: If there are fewer than two layers, one returns no map, or the logits are not ``(B, K)``.
        """
        shapes = [student_shapes[name] for name in self.student_layers]
        if len(shapes) < 2 or any(len(shape) != 4 for shape in shapes):
            raise ValueError(
                f"BYOTLoss: expected at least two layers that return maps (B, C, H, W), the last the deepest, got "
                f"{dict(zip(self.student_layers, shapes, strict=True))}. By default it reads the last map of every "
                "resolution, so a network that keeps one resolution needs names of inner layers: "
                'BYOTLoss(["layer1", "layer2", "layer3"]).'
            )
        scores = student_shapes.get(LOGITS, ())
        if len(scores) != 2:
            raise ValueError(f"BYOTLoss: expected logits (B, K) of the student, got {scores}; it is for classifiers.")
        self.classifiers.extend(_Classifier(shape, shapes[-1], scores[1]) for shape in shapes[:-1])

    def forward(self, features: list[Tensor], *, target: Tensor, student_logits: Tensor) -> Tensor:
        """Compute the unweighted loss: the sum of ``byot_loss`` over the early classifiers."""
        target = with_one_mark(target, IGNORE_INDEX, self.task_ignore_index)
        *early, last = features
        deepest = upcast(last.detach()).mean((2, 3))
        temperature = self.now(self.temperature)
        losses, of_label = [], []
        for classifier, maps in zip(self.classifiers, early, strict=True):
            logits, inner = classifier(maps)
            of_label.append(logits)
            losses.append(
                byot_loss(
                    logits,
                    inner,
                    student_logits,
                    deepest,
                    target,
                    temperature=temperature,
                    alpha=self.alpha,
                    hint_weight=self.hint_weight,
                )
            )
        own = [cross_entropy_of_labelled(upcast(scores), target) for scores in of_label] if is_distributed() else []
        if own:  # the means over this process's labels make way for its share of the means over all labels
            mean = add_up(own)
            losses.append((1.0 - self.alpha) * (self.of_all(mean, count_labels(target, (IGNORE_INDEX,))) - mean))
        return add_up(losses)


def _divergence(logits: Tensor, deepest_logits: Tensor, temperature: float) -> Tensor:
    soft, softer = F.log_softmax(logits / temperature, dim=1), F.log_softmax(deepest_logits / temperature, dim=1)
    return F.kl_div(soft, softer, reduction="batchmean", log_target=True)


class _Classifier(nn.Module):
    """An early classifier: from a map to the channels and the size of the last one, and to the classes."""

    def __init__(self, shape: Shape, last: Shape, num_classes: int) -> None:
        super().__init__()
        middle = max(last[1] // 4, 1)
        step = (max(shape[2] // last[2], 1), max(shape[3] // last[3], 1))
        self.bottleneck = nn.Sequential(
            *_layer(nn.Conv2d(shape[1], middle, 1, bias=False)),
            *_layer(nn.Conv2d(middle, middle, step, stride=step, bias=False)),
            *_layer(nn.Conv2d(middle, last[1], 1, bias=False)),
        )
        self.linear = nn.Linear(last[1], num_classes)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        features = self.bottleneck(maps).mean((2, 3))
        return self.linear(features), features


def _layer(convolution: nn.Conv2d) -> tuple[nn.Module, ...]:
    return convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()


def _check_numbers(function: str, temperature: Scalar, alpha: float, hint_weight: float) -> None:
    check_positive(function, temperature=temperature)
    check_constants(function, alpha=alpha, hint_weight=hint_weight)
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"{function}: expected alpha in 0..1, got {alpha}.")
    if not 0.0 <= hint_weight < float("inf"):
        raise ValueError(f"{function}: expected hint_weight >= 0, got {hint_weight}.")


def _check_shapes(
    logits: Tensor, features: Tensor, deepest_logits: Tensor, deepest_features: Tensor, target: Tensor
) -> None:
    pairs = logits.shape == deepest_logits.shape and features.shape == deepest_features.shape
    rows = logits.ndim == features.ndim == 2 and len(logits) == len(features)
    if not (pairs and rows and target.shape == logits.shape[:1]):
        raise ValueError(
            f"byot_loss: expected logits (B, K) twice, features (B, C) twice and a target (B,), got logits "
            f"{tuple(logits.shape)} and {tuple(deepest_logits.shape)}, features {tuple(features.shape)} and "
            f"{tuple(deepest_features.shape)}, target {tuple(target.shape)}; for a dense prediction flatten the "
            "positions into the batch."
        )
