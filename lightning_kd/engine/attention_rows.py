"""Whether the attention that losses read is that of samples, not of windows, and stays so in every step."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_kd.capture.attention import part_and_block
from lightning_kd.capture.call import Call
from lightning_kd.capture.multihead import Multihead
from lightning_kd.capture.networks import original, plain_name
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


def check_packs_no_tokens(network: nn.Module | None, call: object) -> None:
    """Check that a teacher's encoder of torch will not leave padding out by nested tensors, which cannot be read.

    It does so in eval mode where it is given a mask of padding alone. At set-up, where its operations are looked at, it
    does not.

    Args:
        network: The teacher, ``None`` if there is none to call.
        call: What it was called with, and what was read of it; anything else has nothing to check.

    Raises:
        ValueError: If it will.
    """
    if network is None or not isinstance(call, Call):
        return
    padded = [
        block
        for block, attended in call.attended.items()
        if isinstance(attended, Multihead) and attended.masks[0] is not None and attended.masks[1] is None
    ]
    modules = {plain_name(name): module for name, module in original(network).named_modules(remove_duplicate=False)}
    for block in padded:
        for name, encoder in modules.items():
            packs = isinstance(encoder, nn.TransformerEncoder) and getattr(encoder, "use_nested_tensor", False)
            if packs and modules[plain_name(block)] in encoder.modules():
                raise ValueError(
                    f"The teacher's {block!r} is called without the padded tokens, as nested tensors, by its "
                    f"nn.TransformerEncoder {name!r}, so its attention cannot be read. Set use_nested_tensor = False "
                    "on that encoder before the fit, as enable_nested_tensor=False does when it is made."
                )


def _shapes(features: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of what is read of each block's attention."""
    named = ((part_and_block(name), value) for name, value in features.items())
    return {place[1]: tuple(value.shape) for place, value in named if place is not None}
