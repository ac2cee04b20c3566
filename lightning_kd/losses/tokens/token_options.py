"""What the options of ``TokenKDLoss`` may be, and which of them have no effect together."""

from typing import Literal, get_args

from lightning_kd.losses.tokens.fused import Memory
from lightning_kd.losses.tokens.selection import IGNORE_INDEX
from lightning_kd.losses.tokens.sparse import Missing
from lightning_kd.schedules import Scalar

Vocabulary = Literal["same", "truncate"]
Tokens = Literal["labels", "mask"]
Shift = bool | Literal["auto"]


def check_names(*, vocab: str, memory: str, missing: str, tokens: str, shift: object, fused: bool | None) -> None:
    """Raise a ``ValueError`` if an option is none of its names, or has no effect beside ``fused``."""
    named = {"vocab": (vocab, Vocabulary), "memory": (memory, Memory), "missing": (missing, Missing)}
    for name, (value, known) in {**named, "tokens": (tokens, Tokens)}.items():
        if value not in get_args(known):
            raise ValueError(f"TokenKDLoss: expected {name} to be one of {list(get_args(known))}, got {value!r}.")
    if fused is False and memory != "save":
        raise ValueError(f"TokenKDLoss: memory={memory!r} has no effect with fused=False; leave one of them out.")
    if shift not in (True, False, "auto"):
        raise ValueError(f"TokenKDLoss: expected shift to be True, False or 'auto', got {shift!r}.")


def check_tokens(tokens: Tokens, ignore_index: int, cross_entropy: Scalar) -> None:
    """Raise a ``ValueError`` if an option reads labels, while the mask alone says which tokens count."""
    if tokens == "mask" and ignore_index != IGNORE_INDEX:
        raise ValueError(f"TokenKDLoss: ignore_index={ignore_index} has no effect with tokens='mask'.")
    if tokens == "mask" and cross_entropy != 0.0:
        raise ValueError(
            "TokenKDLoss: cross_entropy is a mean over the tokens with a label, but tokens='mask' counts others too; "
            "give the door a task_loss instead."
        )
