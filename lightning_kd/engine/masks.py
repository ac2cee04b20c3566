"""Whether the mask of a batch fits the layers that losses read, and whether these losses can leave out padding."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from lightning_kd.engine.layouts import tokens_in
from lightning_kd.losses.base import DistillationLoss, Shape


def check_mask(
    losses: Iterable[tuple[str, DistillationLoss]], mask: Tensor | None, shapes: Mapping[str, Mapping[str, Shape]]
) -> None:
    """Check that a mask of tokens fits, and that the losses that read text can leave out padding.

    Args:
        losses: The losses by name, whose views are settled.
        mask: The mask of the first samples; one of samples alone fits every loss.
        shapes: The shapes of the layers of each role.

    Raises:
        ValueError: If it does not; names the part, the layer and the remedy.
    """
    if mask is None or mask.ndim == 1:
        return
    for name, loss in losses:
        text = [(role, n, v) for role, of in loss.views.items() for n, v in of.items() if v.text]
        for role, layer, view in text:
            shape = shapes[role][layer]
            if tokens_in(shape, view) != mask.shape[1]:
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
