"""Whether the mask of a batch fits the layers that losses read, and whether these losses can leave out padding."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_kd.capture.batch import Batch
from lightning_kd.capture.call_mask import is_added
from lightning_kd.capture.columns import TARGET_KEYS, columns_of, is_label, is_own
from lightning_kd.capture.decoder_mask import decoder_mask, is_encoder_decoder, sides_of
from lightning_kd.capture.heads import OUTPUT
from lightning_kd.capture.layout import batch_axis
from lightning_kd.capture.networks import original
from lightning_kd.engine.layouts import tokens_in
from lightning_kd.engine.step import TrainingStep
from lightning_kd.losses.base import DistillationLoss, Shape
from lightning_kd.losses.logits.base import LogitLoss
from lightning_kd.losses.logits.regression import RegressionKDLoss
from lightning_kd.losses.tokens.mean import TokenMean
from lightning_kd.losses.tokens.token_kd import TokenKDLoss
from lightning_kd.metrics.task import IGNORE_INDEX


def check_mask_values(step: TrainingStep, read: Batch, given: Tensor | None) -> None:
    """Check that an ``attention_mask`` says which tokens are no padding, before anything reads it.

    Args:
        step: The training step; a mask of a method of the user's own is left to the user.
        read: The first samples, taken apart.
        given: The ``attention_mask`` that the student was called with.

    Raises:
        ValueError: If its values are added to scores, or no token of the first samples counts.
    """
    for mask in (read.kwargs.get("attention_mask"), given):
        if not is_own(step.hooks.unpack_batch) or not isinstance(mask, Tensor) or mask.ndim != 2 or not mask.numel():
            continue
        if is_added(mask):
            raise ValueError(
                f"attention_mask holds {float(mask.min()):g}, as masks do that are added to scores, but it is read as "
                "1 where a token is no padding and 0 where it is. Give ones and zeros; or override unpack_batch to "
                "return Batch(..., mask=attention_mask == 0)."
            )
        if not bool(mask.any()):
            raise ValueError(
                "attention_mask is zero everywhere in the first samples, so it says that all tokens are padding. It "
                "is 1 where a token is none. Override unpack_batch to return Batch(..., mask=...) if yours means the "
                "opposite."
            )


@dataclass(frozen=True)
class Masks:
    """The masks of the first samples.

    Args:
        tokens: Which tokens are no padding, or which samples count; of a network with encoder and decoder the encoder's
            tokens.
        decoder: Which tokens of the decoder are no padding.
        unsure: The losses of which it is not known whether they read the encoder or the decoder.
        left_out: Whether a method of the user's gives the network an ``attention_mask``, and the losses none.
        unread: The shape of an ``attention_mask`` that the network was given, and that is not read; ``()`` without one.
        labelled: Whether there is a label for each token, which tells losses of tokens what counts.
        of_ids: Whether the mask of tokens is of the ids of a text, so that patches of an image beside it have none.
    """

    tokens: Tensor | None
    decoder: Tensor | None
    unsure: frozenset[str] = frozenset()
    left_out: bool = False
    unread: Shape = ()
    labelled: bool = False
    of_ids: bool = False

    def of_tokens(self, loss: DistillationLoss) -> Tensor | None:
        """Return the mask of tokens of the layers that a loss reads; one of samples alone is none."""
        mask = self.decoder if loss.of_decoder else self.tokens
        return None if mask is None or mask.ndim == 1 else mask


def settle_masks(step: TrainingStep, read: Batch, given: Tensor | None = None) -> Masks:
    """Return the masks of the first samples, and tell each loss whether its layers are those of a decoder.

    A mask of a method of the user's own stays that of all layers.

    Args:
        step: The training step, with the losses.
        read: The batch taken apart.
        given: The ``attention_mask`` that the student was called with.

    Raises:
        ValueError: If a loss reads layers of the encoder and of the decoder, which have no common mask.
    """
    own, named = is_own(step.hooks.unpack_batch), read.kwargs.get("attention_mask")
    left_out = read.mask is None and isinstance(named, Tensor) and named.ndim == 2 and not own
    unread = tuple(given.shape) if given is not None and read.mask is None and own and given.ndim != 2 else ()
    labelled = isinstance(read.target, Tensor) and read.target.ndim == 2 and not read.target.is_floating_point()
    of_ids = own and isinstance(named, Tensor) and _is_of_ids(named, read)
    masks = Masks(read.mask, decoder_mask(read), left_out=left_out, unread=unread, labelled=labelled, of_ids=of_ids)
    student, unsure = original(step.student), set()
    two_sides = is_encoder_decoder(student) and is_own(step.hooks.unpack_batch)
    for name, loss in step.objective.leaves:
        sides = sides_of(student, loss.student_layers) if two_sides else set()
        loss.of_decoder = sides == {"decoder"}
        if isinstance(loss, RegressionKDLoss):
            loss.of_decoder = two_sides
            loss.masked = masks.of_tokens(loss) is not None
        if two_sides and loss.student_layers and not sides:
            unsure.add(name)
        if len(sides) > 1 and (masks.tokens is not None or masks.decoder is not None):
            raise ValueError(
                f"Part {name!r}: {type(loss).__name__} reads layers of the encoder and of the decoder, whose tokens "
                "differ, so one mask cannot tell which are padding. Make a loss of each side."
            )
    of_tokens = [(name, loss) for name, loss in step.objective.leaves if isinstance(loss, TokenKDLoss)]
    asks = [name for name, loss in of_tokens if loss.order.mask_is_of_input]
    step.reads_decoder = bool(asks) or any(loss.of_decoder for _, loss in step.objective.leaves)
    if asks and two_sides and masks.tokens is not None and masks.decoder is None:
        rank_zero_warn(
            f"Part {asks[0]!r}: attention_mask is that of the encoder's tokens, and nothing tells which of the "
            "decoder's are padding, so all of them count. Give labels that are -100 there, or decoder_attention_mask."
        )
    return replace(masks, unsure=frozenset(unsure))


def _is_of_ids(mask: Tensor, read: Batch) -> bool:
    """Whether a mask is as long as the ids of tokens that a network takes."""
    ids = (value for name, value in read.kwargs.items() if value is not mask and not is_label(name))
    return any(isinstance(v, Tensor) and not v.is_floating_point() and v.shape == mask.shape for v in ids)


def check_mask(
    losses: Iterable[tuple[str, DistillationLoss]], masks: Masks, shapes: Mapping[str, Mapping[str, Shape]]
) -> None:
    """Check that a mask of tokens fits, and that the losses that read text can leave out padding.

    Args:
        losses: The losses by name, whose views are settled.
        masks: The masks of the first samples; one of samples alone fits every loss.
        shapes: The shapes of the layers of each role.

    Raises:
        ValueError: If it does not; names the part, the layer and the remedy.
    """
    for name, loss in losses:
        mask = masks.of_tokens(loss)
        if mask is None:
            continue
        if isinstance(loss, RegressionKDLoss):
            loss.check_mask(name, tuple(mask.shape), *loss.logit_shapes(shapes["student"], shapes["teacher"]))
        text = [(role, n, v) for role, of in loss.views.items() for n, v in of.items() if v.text]
        alike = masks.decoder is not None and masks.decoder.shape == mask.shape
        if name in masks.unsure and alike and (text or loss.reads_raw):
            raise ValueError(
                f"Part {name!r}: the student has an encoder and a decoder, whose tokens are as many, so it is not "
                f"known which mask tells the padding of {list(loss.student_layers)}: their names hold neither "
                "'encoder' nor 'decoder'. Override unpack_batch to return Batch(..., mask=...) with that of these "
                "layers."
            )
        for role, layer, view in text:
            shape = shapes[role][layer]
            if tokens_in(shape, view) != view.of_mask(mask, shape[batch_axis(view.order)]).shape[1]:
                raise ValueError(
                    f"Part {name!r}: the mask of the batch has the shape {tuple(mask.shape)}, but the {role}'s "
                    f"layer {layer!r} has {shape}, so the mask does not say which of its tokens are padding. "
                    "Override unpack_batch to return Batch(..., mask=...) with the mask of that layer, or mask=None."
                )
        if text and loss.masking is None:
            raise ValueError(
                f"Part {name!r}: {type(loss).__name__} cannot leave out padded tokens, and the batch has a mask. "
                "Use HintLoss, VIDLoss, ATLoss or a loss of samples, or override unpack_batch to return mask=None."
            )


def tell_rows_of_tokens(
    losses: Iterable[tuple[str, DistillationLoss]], masks: Masks, shapes: Mapping[str, Mapping[str, Shape]]
) -> None:
    """Warn of outputs (B, T) beside a mask (B, T), where a loss takes each row for one sample of T numbers.

    Args:
        losses: The losses by name.
        masks: The masks of the first samples.
        shapes: The shapes of what the losses read of each role.
    """
    for name, loss in losses:
        mask = masks.of_tokens(loss)
        read = shapes["student"].get(OUTPUT) if OUTPUT in loss.student_layers else None
        if isinstance(loss, LogitLoss):
            read = loss.logit_shapes(shapes["student"], shapes["teacher"])[0]
        if mask is not None and read == tuple(mask.shape) and read[1] > 1:
            rank_zero_warn(
                f"Part {name!r}: the student's outputs and the mask of the batch both have the shape {read}. "
                f"{type(loss).__name__} takes each row for one sample of {read[1]} numbers, so those at padding count "
                "too. So it is usual for the position of an answer in a text. If each output is of a token, return "
                f"{(*read, 1)} and use RegressionKDLoss, or logits (B, T, classes) and TokenKDLoss. If a "
                "sample has as many numbers as tokens by chance, go on."
            )
            return


_OF_SEGMENTS = ("type", "segment")
"""What is in the names of tokens' kinds, which are 0 and 1 as a mask's values are."""


def tell_unread_masks(step: TrainingStep, batch: Any, masks: Masks, shapes: Mapping[str, Mapping[str, Shape]]) -> None:
    """Warn of an entry of a batch that looks like a mask of padding, where a loss would use one and none is read.

    Args:
        step: The training step.
        batch: The first samples, as the data loader gave them.
        masks: The masks that are read.
        shapes: The shapes of what the losses read.
    """
    sizes = {size for of in shapes.values() for shape in of.values() for size in shape[1:]}
    if (
        is_own(step.hooks.unpack_batch)
        and not masks.labelled
        and any(_reads_labels(loss) for _, loss in step.objective.leaves)
    ):
        _tell_unread_labels(batch, sizes)
    if masks.tokens is not None or not step.takes_mask:
        return
    if masks.left_out:
        rank_zero_warn(
            "unpack_batch gives the network an attention_mask, but the losses no mask, so they count every token, "
            "padding too. Return Batch(..., mask=attention_mask.bool()); or ones in its place, if all are to count."
        )
    if not is_own(step.hooks.unpack_batch):
        return
    if masks.unread and not (masks.labelled and all(map(_counts_by_labels, step.objective.components))):
        rank_zero_warn(
            f"The student is called with an attention_mask of shape {masks.unread}. Only one of shape (B, T), True "
            "where a token is no padding, is read by itself, so the losses count every token, padding too. Override "
            "unpack_batch to return Batch(..., mask=...) of that shape; or mask=None, if there is no padding."
        )
    for name, entry in _entries(batch):
        if _is_like_a_mask(name, entry, sizes) or _is_like_lengths(name, entry, sizes):
            rank_zero_warn(
                f"{_shown(name)} of the batch, of shape {tuple(entry.shape)}, looks as if it told which tokens are "
                "padding, but it is not read, so the losses count every token. Override unpack_batch to return "
                "Batch(..., mask=...), True where a token is no padding (mask=None if it is something else); a mask "
                "named attention_mask is read by itself."
            )


def _tell_unread_labels(batch: Any, sizes: set[int]) -> None:
    for name, entry in _entries(batch):
        ids = entry.ndim == 2 and not entry.is_floating_point() and entry.shape[1] in sizes
        if ids and bool((entry == IGNORE_INDEX).any()):
            rank_zero_warn(
                f"{_shown(name)} of the batch, of shape {tuple(entry.shape)}, holds {IGNORE_INDEX} as labels of tokens "
                "do, but it is not read, so the losses count every token that is no padding. Name it labels, or "
                "override unpack_batch to return Batch(..., target=...)."
            )


def _shown(name: str | int) -> str:
    return repr(name) if isinstance(name, str) else f"input {name}"


def _reads_labels(loss: DistillationLoss) -> bool:
    return isinstance(loss, TokenMean) and getattr(loss, "tokens", "labels") == "labels"


def _counts_by_labels(loss: DistillationLoss) -> bool:
    """Whether a loss leaves out what has no label, or reads no tokens."""
    return not loss.reads_text or _reads_labels(loss)


def _entries(batch: Any) -> Iterator[tuple[str | int, Tensor]]:
    """Yield the inputs in a batch by name or number, without its target."""
    columns = columns_of(batch)
    inputs = batch[0] if columns is None and isinstance(batch, tuple | list) and batch else ()
    entries: Iterable[tuple[Any, Any]] = enumerate(inputs) if isinstance(inputs, tuple | list) else ()
    if columns is not None:
        entries = [(name, entry) for name, entry in columns.items() if name not in TARGET_KEYS]
    for name, entry in entries:
        if isinstance(entry, Tensor) and not entry.is_complex():
            yield name, entry


def _is_like_a_mask(name: str | int, entry: Tensor, sizes: set[int]) -> bool:
    if entry.ndim != 2 or entry.shape[1] not in sizes or any(part in str(name) for part in _OF_SEGMENTS):
        return False
    # zeros alone may be anything
    return entry.dtype == torch.bool or bool(((entry == 0) | (entry == 1)).all() and entry.any())


def _is_like_lengths(name: str | int, entry: Tensor, sizes: set[int]) -> bool:
    if entry.ndim != 1 or entry.is_floating_point() or not entry.numel() or "len" not in str(name):
        return False
    return bool((entry > 0).all()) and int(entry.max()) <= max(sizes, default=0)
