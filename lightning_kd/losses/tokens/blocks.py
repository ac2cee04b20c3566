"""What the losses share that read the attention of blocks of a transformer."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_kd.capture.attention import Part, place_of
from lightning_kd.capture.attention_kinds import find_attention
from lightning_kd.capture.decoder_mask import is_encoder_decoder
from lightning_kd.capture.networks import plain_name
from lightning_kd.losses.base import DistillationLoss, Layers, StepTensors, as_names
from lightning_kd.losses.tokens.documents import one_document_a_row
from lightning_kd.losses.tokens.sentences import Reduction

Role = Literal["student", "teacher"]


class ReadsAttention(DistillationLoss, ABC):
    """A loss that reads the attention inside of a block, where the block of that name has one that can be read.

    A name may also be that of a module which returns what the loss compares; then its output is read.
    """

    reduction: Reduction
    of_patches = False
    """Whether the blocks are of images beside a text, whose mask is none of theirs; set-up finds out."""
    _mapped: tuple[tuple[str, ...], tuple[str, ...]] | None = None

    @property
    @abstractmethod
    def parts(self) -> tuple[Part, ...]:
        """Return what is read of each block; may depend on the options."""

    @property
    def means_over_tokens(self) -> bool:
        """Whether the loss is a mean over what all processes hold: always, over tokens, pairs of them, or sentences."""
        return True

    def evaluate(self, step: StepTensors) -> Tensor:
        """Return the unweighted loss of a step, in which tokens of other documents of a row are not related."""
        if self.of_patches:
            step = replace(step, mask=None, position_ids=None)
        return super().evaluate(step if self.of_decoder else one_document_a_row(self._own_layers(step)))

    def _own_layers(self, step: StepTensors) -> StepTensors:
        """Leave out what other losses read, which is not to be cut."""
        if step.position_ids is None:
            return step
        ours = {name: step.student_features[name] for name in self.student_layers}
        theirs = {name: step.teacher_features[name] for name in self.teacher_layers}
        return replace(step, student_features=ours, teacher_features=theirs)

    def _tokens(self, step: StepTensors) -> Tensor:
        """Return over how many tokens, pairs of tokens, or sentences the mean of a step is taken."""
        mask = step.decoder_mask if self.of_decoder else step.mask
        if mask is None or mask.ndim != 2:
            shape = step.student_features[self.student_layers[0]].shape  # (B, H, T, T) or (B, T, C)
            tokens = shape[2:].numel() if self.counts_pairs else shape[-2]
            count = shape[0] * (1 if self.reduction == "sentences" else tokens)
            return torch.tensor(count, device=step.student_features[self.student_layers[0]].device)
        lengths = mask.bool().sum(1)
        if self.reduction == "sentences":
            return (lengths > 0).sum()
        return lengths.square().sum() if self.counts_pairs else lengths.sum()

    @property
    def counts_pairs(self) -> bool:
        """Whether the mean is taken over pairs of tokens, not over tokens; may depend on the options."""
        return False

    @property
    def blocks(self) -> dict[Role, tuple[str, ...]]:
        """The names of each role: those that a map has found, else those of the options."""
        if self._mapped is not None:
            return {"student": self._mapped[0], "teacher": self._mapped[1]}
        return {"student": as_names(self.student), "teacher": as_names(self.teacher)}

    def take_layers(self, student: Sequence[str], teacher: Sequence[str]) -> None:
        """Read these blocks in the place of those that the options name."""
        super().take_layers(student, teacher)
        self._mapped = tuple(student), tuple(teacher)

    def name_layers(self, student: Layers, teacher: Layers) -> None:
        """Set the blocks or modules to read."""
        self._mapped = None
        super().name_layers(student, teacher)

    def see_blocks(self, role: Role, network: nn.Module) -> None:
        """Learn which of a role's names are blocks whose attention is read.

        Args:
            role: Whose names.
            network: The network.

        Raises:
            ValueError: If a block computes its attention in a way that shows nothing of it, or has several, or attends
                from a decoder to its encoder.
        """
        names = self.blocks[role]
        modules = {plain_name(name): part for name, part in network.named_modules(remove_duplicate=False)}
        read: list[str] = []
        for name in names:
            block = modules.get(plain_name(name))
            attention = None if block is None else find_attention(block, name, role)
            if attention is not None:
                _check_tokens(network, name, attention, role)
                read += [place_of(part, name) for part in self.parts]
            else:
                read.append(name)
        if role == "student":
            self._student_layers = tuple(read)
        else:
            self._teacher_layers = tuple(read)


def _check_tokens(network: nn.Module, name: str, attention: nn.Module, role: str) -> None:
    """Raise a ``ValueError`` for cross-attention: its queries are the decoder's tokens, its keys the encoder's."""
    if not is_encoder_decoder(network) or "decoder" not in name.split("."):
        return
    (full,) = (plain_name(one) for one, module in network.named_modules() if module is attention)
    if not any(part.lower().startswith("self") for part in full.split(".")):
        raise ValueError(
            f"The {role}'s {name!r} attends from the decoder's tokens to the encoder's, and one mask cannot tell the "
            "padding of both. Name the decoder's attention to its own tokens or a block of the encoder, or compare "
            "the decoder's logits by TokenKDLoss."
        )


def no_attention(name: str) -> str:
    """Return what a module lacks whose attention was to be read, and the remedy."""
    return (
        f"{name!r} has no attention that goes through transformers' attention interface, is torch's "
        "nn.MultiheadAttention or calls torch.nn.functional.scaled_dot_product_attention, as models do not that make "
        "the matrix by hand. Name a block that has, or modules that return what is compared; HiddenStateLoss reads any "
        "module."
    )
