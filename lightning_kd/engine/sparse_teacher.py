"""What is checked of a teacher that tells a few tokens of each position, on the first samples."""

from torch import Tensor

from lightning_kd.losses.tokens.sparse import SparseLogits
from lightning_kd.teachers.base import Lesson

_SLACK = 1.02
"""What rounding to 16 bits may add to a sum of probabilities."""


def sparse_in(lesson: Lesson) -> SparseLogits | None:
    """Return a teacher's answer if it is ``SparseLogits``."""
    output = lesson.output
    return output if isinstance(output, SparseLogits) else None


def check_sparse_answer(sparse: SparseLogits | None, logits: Tensor | None, mask: Tensor | None) -> None:
    """Check that ids are tokens of the student's vocabulary, each once at a position, with log-probabilities.

    Args:
        sparse: The teacher's answer, if it is of this kind.
        logits: The student's logits.
        mask: Which positions are no padding; at the others anything may stand.

    Raises:
        ValueError: If they are not; names the remedy.
    """
    if sparse is None or logits is None or sparse.ids.is_meta:
        return
    if sparse.shape[:-1] != logits.shape[:-1]:
        raise ValueError(
            f"The teacher's SparseLogits are of shape {tuple(sparse.shape)} and the student's logits of "
            f"{tuple(logits.shape)}, but both must be of the same positions, (B, T, K) and (B, T, V)."
        )
    if mask is not None and mask.shape in (logits.shape[:-1], logits.shape[:1]):
        sparse = sparse.of_rows(mask.bool().to(sparse.ids.device))
    if not sparse.ids.numel():
        return
    lowest, highest = int(sparse.ids.min()), int(sparse.ids.max())
    if lowest < 0 or highest >= logits.shape[-1]:
        raise ValueError(
            f"The teacher's SparseLogits hold token ids from {lowest} to {highest}, but the student's vocabulary has "
            f"{logits.shape[-1]} tokens; ids of another tokenizer cannot be compared."
        )
    ordered = sparse.ids.masked_fill(sparse.log_probs == float("-inf"), -1).sort(-1).values
    if bool(((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any()):
        raise ValueError(
            "The teacher's SparseLogits hold the same token id twice at a position; store each once. Draws with "
            "repetition are SparseLogits.from_draws(ids)."
        )
    most = float(sparse.log_probs.double().exp().nansum(-1).max())
    if most > _SLACK:
        raise ValueError(
            f"The teacher's SparseLogits hold no log-probabilities: at a position their exponentials add up to "
            f"{most:.3g}, which is more than 1. Store torch.log_softmax(logits, -1) of the tokens that are kept, as "
            "SparseLogits.top_k(logits, k) does."
        )
