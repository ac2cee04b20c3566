"""Teacher logits of which only a few tokens are stored, and their divergence from the student's whole distribution."""

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from lightning_kd.losses.tensors import check_differentiated_once
from lightning_kd.losses.tokens.divergences import Form, floor, log_probabilities, settled

Missing = Literal["renormalize", "tail", "renormalize_both"]
_NEEDS_MASS = ("reverse_kl", "symmetric_kl", "alpha_beta")
"""Divergences that are infinite, or no sum over one bucket, where the teacher has probability 0 for the rest."""


@dataclass(frozen=True)
class SparseLogits:
    """A teacher's log-probabilities of a few tokens at each position, in the place of its logits.

    Args:
        ids: Token ids (B, T, K), each once at a position.
        log_probs: Their log-probabilities (B, T, K) at temperature 1, normalised over the whole vocabulary; ``-inf``
            where fewer than K are stored, whatever the id there is.
        sampled: Whether they are shares of draws out of the teacher's distribution, see :meth:`from_draws`.

    Raises:
        ValueError: If the shapes differ, or the ids are no whole numbers.

    Example:
        >>> kept = SparseLogits.top_k(torch.tensor([[2.0, 0.0, 1.0]]), 2)
        >>> kept.ids, kept.log_probs
        (tensor([[0, 2]]), tensor([[-0.4076, -1.4076]]))
    """

    ids: Tensor
    log_probs: Tensor
    sampled: bool = False

    def __post_init__(self) -> None:
        """Check that ids and log-probabilities belong together."""
        if self.ids.shape != self.log_probs.shape or self.ids.ndim < 2:
            raise ValueError(
                f"SparseLogits: expected ids and log_probs of one shape (B, T, K), got {tuple(self.ids.shape)} and "
                f"{tuple(self.log_probs.shape)}."
            )
        if self.ids.is_floating_point() or not self.log_probs.is_floating_point():
            raise ValueError(
                f"SparseLogits: expected token ids and log-probabilities, got {self.ids.dtype} and "
                f"{self.log_probs.dtype}."
            )

    @property
    def shape(self) -> torch.Size:
        """The shape of ids and log-probabilities."""
        return self.ids.shape

    def of_rows(self, rows: Tensor) -> "SparseLogits":
        """Return some of the rows."""
        return SparseLogits(self.ids[rows], self.log_probs[rows], self.sampled)

    @classmethod
    def top_k(cls, logits: Tensor, k: int) -> "SparseLogits":
        """Keep the k most likely tokens of whole logits (B, T, V)."""
        values, ids = torch.log_softmax(logits.float() if logits.dtype.itemsize < 4 else logits, -1).topk(k)
        return cls(ids, values)

    @classmethod
    def from_draws(cls, ids: Tensor) -> "SparseLogits":
        """Take tokens (B, T, N) that were drawn from the teacher's distribution, with repetition.

        The share of the draws is in the mean the teacher's probability, so the gradient of the forward KL is without
        bias, where that of the k most likely tokens is not.

        Reference:
            Anshumann et al., "Sparse Logit Sampling", ACL 2025.
        """
        ordered = ids.sort(dim=-1).values
        same = ordered.unsqueeze(-1) == ordered.unsqueeze(-2)
        again = same.tril(-1).any(-1)
        log_probs = (same.sum(-1) / ids.shape[-1]).log().masked_fill(again, float("-inf"))
        return cls(ordered, log_probs, sampled=True)


def check_sparse(
    function: str, divergence: str, missing: str, temperature: float, sparse: SparseLogits, vocabulary: int
) -> None:
    """Raise a ``ValueError`` unless the divergence of a few tokens is finite, and the settings have an effect."""
    if missing not in get_args(Missing):
        raise ValueError(f"{function}: expected missing to be one of {list(get_args(Missing))}, got {missing!r}.")
    if sparse.shape[-1] > vocabulary and not sparse.sampled:
        raise ValueError(
            f"{function}: SparseLogits of shape {tuple(sparse.shape)} hold more tokens than the vocabulary of "
            f"{vocabulary}."
        )
    if sparse.sampled and (divergence != "forward_kl" or missing != "renormalize" or temperature != 1.0):
        raise ValueError(
            f"{function}: draws say something of the teacher in forward_kl at temperature 1 with "
            f"missing='renormalize', got {divergence}, {temperature} and {missing!r}; store the most likely tokens "
            "for others."
        )
    if missing == "renormalize" and divergence in _NEEDS_MASS and sparse.shape[-1] < vocabulary:
        raise ValueError(
            f"{function}: {divergence} is not defined where the teacher's probability is 0, as it is for tokens that "
            "are not stored with missing='renormalize'; use missing='tail' or 'renormalize_both'."
        )


def sparse_values(student: Tensor, sparse: SparseLogits, form: Form, missing: str, temperature: float) -> Tensor:
    """Return the divergence of each row, with a gradient.

    Args:
        student: The student's logits (M, V).
        sparse: The teacher's tokens (M, K).
        form: The closed form of the divergence.
        missing: What the tokens are that are not stored.
        temperature: Softening of both distributions.
    """
    values: Tensor = cast(Any, _Sparse).apply(
        student, sparse.ids, sparse.log_probs, sparse.sampled, form, missing, temperature
    )
    return values


class _Sparse(torch.autograd.Function):
    """Both distributions over the stored tokens, and one bucket for the rest unless both are renormalised."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        ids: Tensor,
        log_probs: Tensor,
        sampled: bool,
        form: Form,
        missing: str,
        temperature: float,
    ) -> Tensor:
        with torch.autocast(student.device.type, enabled=False):
            whole = ids.shape[-1] == student.shape[-1] and not sampled  # nothing is missing
            log_q = log_probabilities(student, temperature)
            absent = log_probs == float("-inf")
            if not whole:  # the id of an absent token may be any: let it be one that is stored there
                ids = torch.where(absent, ids.gather(-1, log_probs.argmax(-1, keepdim=True)), ids)
            of_ids = log_q.gather(-1, ids)
            teacher = _of_teacher(log_probs.to(student.dtype), "renormalize" if whole else missing, temperature)
            if not whole:  # a repeated draw counts at its first place alone, and an absent token nowhere
                of_ids = torch.where(absent, torch.finfo(of_ids.dtype).min / 4, of_ids)
            if missing == "renormalize_both" or whole:
                of_ids = floor(torch.log_softmax(of_ids, -1))
                values = form(of_ids, teacher)
                gradient = torch.zeros_like(log_q).scatter_add_(-1, ids, of_ids)
            else:
                rest = floor(log_q.scatter(-1, ids, float("-inf")).logsumexp(-1, keepdim=True))
                slope = torch.cat([of_ids, rest], -1)
                if missing == "renormalize":
                    teacher = torch.cat([teacher, torch.full_like(rest, torch.finfo(rest.dtype).min / 4)], -1)
                values = form(slope, teacher)
                gradient = log_q.sub_(rest).clamp_(max=0.0).exp_().mul_(slope[..., -1:])
                gradient = gradient.scatter_(-1, ids, 0.0).scatter_add_(-1, ids, slope[..., :-1])
        ctx.save_for_backward(gradient if temperature == 1.0 else gradient.div_(temperature))
        return settled(values)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        check_differentiated_once("token_kd_loss")
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.unsqueeze(-1), None, None, None, None, None, None


def _of_teacher(log_probs: Tensor, missing: str, temperature: float) -> Tensor:
    """Return the teacher's log-probabilities of the stored tokens, with the rest behind them for ``"tail"``."""
    if missing == "tail":
        eps = torch.finfo(log_probs.dtype).eps
        rest = (1 - log_probs.exp().sum(-1, keepdim=True)).clamp_min(eps).log()
        log_probs = torch.cat([log_probs, rest], -1)
    return log_probabilities(log_probs, temperature)
