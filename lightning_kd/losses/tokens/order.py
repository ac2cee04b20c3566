"""Which token the logits at a position predict: the one there, or the one after it."""

from dataclasses import dataclass

from lightning_utilities.core.rank_zero import rank_zero_info
from torch import nn

from lightning_kd.capture.decoder_mask import is_encoder_decoder
from lightning_kd.losses.base import Shape

_CAUSAL = ("ForCausalLM", "LMHeadModel", "LMHead")
_ALIGNED = ("ForMaskedLM", "ForPreTraining", "ForTokenClassification", "ForQuestionAnswering")


@dataclass(frozen=True)
class Order:
    """What the positions of logits stand for.

    Args:
        predicts_next: Whether a position predicts the token after it, ``None`` if that is not known.
        mask_is_of_input: Whether the mask of a batch is that of an encoder's tokens, which are not those of the logits.
        known: Whether the networks were looked at, or the user has said it.
    """

    predicts_next: bool | None
    mask_is_of_input: bool = False
    known: bool = True

    def check(self, logits: Shape) -> bool:
        """Return whether a position predicts the token after it.

        Raises:
            ValueError: If that is not known.
        """
        if self.predicts_next is None:
            raise ValueError(
                f"TokenKDLoss: whether logits of shape {logits} predict the token at their position or the one after "
                "it cannot be known of this network. Write TokenKDLoss(shift=True) for a causal language model, "
                "shift=False if the labels are those of the same position, as for masked language models."
            )
        return self.predicts_next


def find_order(student: nn.Module, teacher: nn.Module | None, given: bool | None) -> Order:
    """Find out what the positions of the student's logits stand for, and say so.

    Args:
        student: The student.
        teacher: The teacher, ``None`` if no network answers.
        given: What the user has said, ``None`` to go by the student's class as Hugging Face names it.

    Raises:
        ValueError: If the two networks differ in it.
    """
    ours = order_of(student)
    if given is not None:
        return Order(given, ours.mask_is_of_input)
    theirs = ours if teacher is None else order_of(teacher)
    if None not in (ours.predicts_next, theirs.predicts_next) and ours.predicts_next != theirs.predicts_next:
        raise ValueError(
            f"TokenKDLoss: of {type(student).__name__} and {type(teacher).__name__} one predicts the next token, and "
            "the other the token at its position, so their logits cannot be compared. Take two networks of one kind, "
            "or say shift=True or False if the outputs do match."
        )
    if ours.predicts_next is not None:
        which = "the token after it" if ours.predicts_next else "the token at its place"
        rank_zero_info(
            f"TokenKDLoss: each position of {type(student).__name__} predicts {which}: shift={ours.predicts_next}."
        )
    return ours


def order_of(network: nn.Module) -> Order:
    """Return what the positions of a network's logits stand for, by its class as Hugging Face names it."""
    name = type(network).__name__
    if is_encoder_decoder(network):  # of a network without a config it is not known what its positions predict
        told = getattr(network, "config", None) is not None
        return Order(predicts_next=False if told else None, mask_is_of_input=True)
    if name.endswith(_CAUSAL):
        return Order(predicts_next=True)
    return Order(predicts_next=False if name.endswith(_ALIGNED) else None)
