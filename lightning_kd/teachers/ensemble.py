"""Several networks that answer as one."""

import math
from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from lightning_kd.batches import logits_of

Average = Literal["probabilities", "logits"]


@final
class Ensemble(nn.Module):
    r"""Average the answers of several networks, as a teacher or to predict with.

    .. math::
        z = \log \frac{1}{K} \sum_k \mathrm{softmax}(z_k) \qquad \text{or} \qquad z = \frac{1}{K} \sum_k z_k

    Args:
        members: The networks; their outputs are tensors, tuples, or have ``logits``.
        average: Whether to average the class probabilities, whose logarithm is returned, or the logits.

    Raises:
        ValueError: If there is no network, or ``average`` is neither; when called, if an output has no logits or
            the shapes differ.

    Example:
        >>> def always(*logits):
        ...     layer = nn.Linear(1, 2)
        ...     layer.weight.data.zero_(), layer.bias.data.copy_(torch.tensor(logits))
        ...     return layer
        >>> ensemble = Ensemble([always(0.0, 0.0), always(1.0986123, 0.0)])  # (1/2, 1/2) and (3/4, 1/4)
        >>> ensemble(torch.zeros(1, 1)).exp()
        tensor([[0.6250, 0.3750]], grad_fn=<ExpBackward0>)
    """

    def __init__(self, members: Sequence[nn.Module], average: Average = "probabilities") -> None:
        super().__init__()
        if not members:
            raise ValueError("Ensemble: expected at least one network, got none.")
        if average not in ("probabilities", "logits"):
            raise ValueError(f"Ensemble: expected average 'probabilities' or 'logits', got {average!r}.")
        self.members = nn.ModuleList(members)
        self.average: Average = average

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the logits of the average."""
        answers = [logits_of(member(*args, **kwargs)) for member in self.members]
        known = [answer for answer in answers if answer is not None]
        if len(known) < len(answers) or len({answer.shape for answer in known}) > 1:
            found = [None if answer is None else tuple(answer.shape) for answer in answers]
            raise ValueError(f"Ensemble: expected logits of one shape from every network, got {found}.")
        logits = torch.stack(known)
        if self.average == "logits":
            return logits.mean(dim=0)
        return logits.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(known))
