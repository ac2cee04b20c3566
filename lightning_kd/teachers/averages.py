"""How the answers of several teachers become one: formulas on logarithms of probabilities."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Average = Literal["probabilities", "logits", "geometric", "max", "median", "vote", "confidence"]
WEIGHTED = ("probabilities", "logits", "geometric", "vote")
"""The averages in which a member may count more than another."""
PARTIAL = ("probabilities", "geometric", "max", "vote")
"""The averages of members that do not know all classes."""
VOTE_FLOOR = 1e-4
"""The share of a class that nobody votes for, before the shares are divided by their sum."""


def mean_of_logits(answers: Sequence[Tensor], weights: Sequence[float] | None) -> Tensor:
    """Return the mean of logits.

    Args:
        answers: The members' logits, of one shape.
        weights: Weight of each member, with sum 1; by default all alike.
    """
    if weights is None:
        total = answers[0]
        for answer in answers[1:]:
            total = total + answer
        return total / len(answers)
    total = answers[0] * weights[0]
    for answer, weight in zip(answers[1:], weights[1:], strict=True):
        total = total + answer * weight
    return total


def mean_of_probabilities(logarithms: Sequence[Tensor]) -> Tensor:
    """Return the logarithm of the mean of what these are the logarithms of."""
    total = logarithms[0]
    for one in logarithms[1:]:
        total = torch.logaddexp(total, one)
    return total - math.log(len(logarithms))


def combined(average: Average, logs: Tensor, shares: Tensor, axis: int) -> Tensor:
    r"""Return the logarithm of one distribution over the classes for those of :math:`K` members.

    Args:
        average: How, see :class:`~lightning_kd.teachers.Ensemble`.
        logs: Logarithms of the members' probabilities, (K, ...); minus infinity for a class that a member lacks.
        shares: Weight of each member for each class, (K, C) or (K, 1); over the members that know a class their sum
            is 1.
        axis: The axis of the classes in one member's answer.

    Example:
        >>> logs = torch.tensor([[[0.8, 0.2]], [[0.2, 0.8]], [[0.5, 0.5]]]).log()
        >>> combined("median", logs, torch.full((3, 1), 1 / 3), 1).exp()
        tensor([[0.5000, 0.5000]])
    """
    axis = axis % (logs.ndim - 1)
    places = [1] * logs.ndim
    places[0], places[axis + 1] = shares.shape
    shares = shares.reshape(places)
    if average == "probabilities":
        found = torch.logsumexp(logs + shares.log(), 0)
    elif average == "geometric":
        found = torch.where(shares > 0, logs * shares, 0.0).sum(0)  # of a class without a weight 0 * -inf would be NaN
    elif average == "max":
        found = logs.amax(0)
    elif average == "median":
        found = _median(logs)
    elif average == "vote":
        votes = torch.zeros_like(logs).scatter(axis + 1, logs.argmax(axis + 1, keepdim=True), 1.0)
        found = (votes * shares).sum(0).clamp_min(VOTE_FLOOR).log()
    else:
        found = torch.logsumexp(logs + confidences(logs, axis).log(), 0)
    normalised: Tensor = found.log_softmax(axis)
    return normalised


def confidences(logs: Tensor, axis: int) -> Tensor:
    r"""Return the weight of each member at each sample, and at each pixel or token, by its entropy.

    .. math::
        w_k = \frac{1}{K - 1} \Big(1 - \frac{e^{H_k}}{\sum_j e^{H_j}}\Big)

    Args:
        logs: Logarithms of the members' probabilities, (K, ...).
        axis: The axis of the classes in one member's answer.

    Returns:
        The weights (K, ...), with one entry along the classes; their sum over the members is 1.

    Example:
        >>> logs = torch.tensor([[[0.999999, 0.000001]], [[0.5, 0.5]]]).log()
        >>> confidences(logs, 1).flatten()  # entropies 0 and ln 2: shares 1/3 and 2/3 of the doubt
        tensor([0.6667, 0.3333])
    """
    count = logs.shape[0]
    if count == 1:
        return torch.ones_like(logs.select(axis + 1, 0).unsqueeze(axis + 1))
    entropy = -torch.special.xlogy(logs.exp(), logs.exp()).sum(axis + 1, keepdim=True)
    weights: Tensor = (1.0 - entropy.softmax(0)) / (count - 1)
    return weights


def _median(logs: Tensor) -> Tensor:
    """Return the logarithm of the median over the members; of an even number that of the mean of the middle two."""
    ordered = logs.sort(0).values
    low, high = (len(logs) - 1) // 2, len(logs) // 2
    return ordered[high] if low == high else torch.logaddexp(ordered[low], ordered[high]) - math.log(2.0)
