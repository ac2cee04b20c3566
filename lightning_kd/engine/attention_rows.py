"""Whether the attention that losses read is that of samples, not of windows or other parts of them."""

from collections.abc import Mapping
from typing import Any

from lightning_kd.capture.attention import part_and_block
from lightning_kd.capture.call import Call
from lightning_kd.capture.seen import batch_of


def check_rows(role: str, call: object, target: Any) -> None:
    """Check that the attention of every block has a row for each sample, where nothing else tells what its rows are.

    Args:
        role: ``"student"`` or ``"teacher"``, for the message.
        call: What a network was called with, and what was read of it; anything else has nothing to check.
        target: The target of the batch, which tells the axis of the samples.

    Raises:
        ValueError: If it has several rows for each.
    """
    if not isinstance(call, Call) or not call.attended:
        return
    found = batch_of(call.args, call.kwargs, target)
    rows = {block: shape[0] for block, shape in _shapes(call.features).items() if call.attended[block].of_samples}
    for block, count in rows.items():
        if found is not None and found[0] and count != found[0] and count % found[0] == 0:
            raise ValueError(
                f"The {role}'s {block!r} has attention of {count} rows for {found[0]} samples, as in windows that are "
                "put into the batch, so its tokens are not those of a sample. Name a block that attends over the whole "
                "sample, or compare hidden states by HiddenStateLoss, or maps by ATLoss."
            )


def _shapes(features: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of what is read of each block's attention."""
    named = ((part_and_block(name), value) for name, value in features.items())
    return {place[1]: tuple(value.shape) for place, value in named if place is not None}
