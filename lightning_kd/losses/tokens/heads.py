"""Output layers of language models, and what is computed of their logits."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_kd.capture.private import has_hooks
from lightning_kd.losses.tokens.divergences import Form, closed_form


@dataclass(frozen=True)
class Tail:
    """What a model does with the output of its head: ``cap * tanh(scale * y / cap) + bias``.

    Args:
        scale: Factor of the logits.
        cap: Bound of the logits (soft-capping), ``None`` without one.
        bias: What is added last, without a gradient.
    """

    scale: float = 1.0
    cap: float | None = None
    bias: Tensor | None = None

    def __call__(self, output: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return the logits, and their slope in the output of the head."""
        slope: Tensor | float = self.scale
        if self.cap is not None:
            bent = torch.tanh(output * (self.scale / self.cap))
            output, slope = bent * self.cap, bent.square_().neg_().add_(1.0).mul_(self.scale)
        elif self.scale != 1.0:
            output = output * self.scale
        return (output if self.bias is None else output + self.bias[..., : output.shape[-1]]), slope


class Head:
    """The output layer of a model, and what comes after it.

    Args:
        module: Called with hidden states (M, H); a plain ``nn.Linear`` is multiplied here, which is faster.
        tail: What the model does with its output.
    """

    def __init__(self, module: nn.Module, tail: Tail | None = None) -> None:
        self.module = module
        self.tail = Tail() if tail is None else tail
        self.is_plain = type(module) is nn.Linear and not has_hooks(module)
        """Whether the module is a linear layer and nothing else, hooks of others included."""


@dataclass(frozen=True)
class Aim:
    """What is computed of the logits of a chunk.

    Args:
        divergence: Which divergence, with its settings as in ``token_kd_loss``.
        temperature: Softening of both distributions.
        factor: Factor of the divergence.
        cross_entropy: Factor of the cross entropy with the labels.
    """

    divergence: str = "forward_kl"
    alpha: float = 0.1
    beta: float = 0.5
    ratio: float = 0.5
    temperature: float = 1.0
    factor: float = 1.0
    cross_entropy: float = 0.0

    @property
    def form(self) -> Form:
        """The closed form of the divergence."""
        return closed_form(self.divergence, self.alpha, self.beta, self.ratio)
