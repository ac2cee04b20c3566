"""How much each member of an ensemble should count, by labelled data that no member was trained on."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_kd.capture.networks import device_of, modes_of, put_in_modes
from lightning_kd.capture.private import tree_map_only


def answers_on(
    members: nn.ModuleList, logits: Callable[[int, object], Tensor], batches: Iterable[tuple[object, Tensor]]
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Yield the members' logits and the labels, batch by batch, in eval mode and without gradients.

    Args:
        members: The members, whose modes are as before when this ends.
        logits: Finds the logits in the output of a member, given its number.
        batches: Pairs of an input, or a tuple of several, and labels.
    """
    modes = modes_of(members)
    device = device_of(members)
    try:
        members.eval()
        for batch in batches:
            given, target = tree_map_only(Tensor, lambda tensor: tensor.to(device), tuple(batch[:2]))
            args = given if isinstance(given, tuple | list) else (given,)
            with torch.no_grad():
                answers = [logits(i, member(*args)) for i, member in enumerate(members)]
            yield answers, target
    finally:
        put_in_modes(modes)


def labelled(answers: Sequence[Tensor], target: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return the logarithms of the members' probabilities (K, C, N), and the labels (N), where a label is not below 0.

    Args:
        answers: The members' logits.
        target: Class ids, one for each sample, pixel or token.
        axis: The axis of the classes.

    Raises:
        ValueError: If there is not a class id for each answer.
    """
    logs = torch.stack([F.log_softmax(answer, dim=axis).movedim(axis, 0).flatten(1) for answer in answers])
    target = target.flatten()
    if target.is_floating_point() or len(target) != logs.shape[2]:
        raise ValueError(
            f"Ensemble: expected a class id for each of {logs.shape[2]} answers, got {len(target)} of {target.dtype}."
        )
    return logs[:, :, target >= 0], target[target >= 0]


def likeliest(logs: Tensor, steps: int) -> list[float]:
    """Return the weights under which the labels are likeliest, by expectation and maximisation from equal weights.

    Args:
        logs: Logarithm of each member's probability of each label, (K, N).
        steps: Number of steps, >= 1.

    Example:
        >>> [round(weight, 4) for weight in likeliest(torch.tensor([[0.5, 0.5, 0.5], [1.0, 1.0, 0.0]]).log(), 200)]
        [0.6667, 0.3333]
    """
    logs = logs.double()
    weights = logs.new_full((len(logs), 1), 1.0 / len(logs))
    for _ in range(steps):
        weights = (logs + weights.log()).softmax(0).mean(1, keepdim=True)
    found: list[float] = weights.flatten().tolist()
    return found
