"""Whether probabilities are still probabilities after they are rounded to the format of a store.

A fit that reads stored answers notices a teacher that ends in a softmax: each row adds up to 1. Rounding must not hide
that, nor make zeros of small probabilities, whose logarithms a loss reads.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_kd.cache.items import Format
from lightning_kd.capture.decoder_mask import Side
from lightning_kd.capture.outputs import kind_of_probabilities
from lightning_kd.teachers.cached import HEAD, LOGITS

_MOST = 2**24
"""How many numbers of the first samples are looked at, in float64."""
_REMEDY = "or store logits: a teacher without its last layer, the softmax"


def check_rounding(
    values: Mapping[str, Tensor],
    items: Mapping[str, Mapping[str, Any]],
    masks: Mapping[Side, Tensor | None],
    form: Format,
    *,
    reads_logits: bool = True,
) -> None:
    """Refuse a teacher's probabilities where the store would hold something else.

    The classes are looked for on axis 1, as in (B, C) and (B, C, H, W), and on the last one, as in (B, T, V).

    Args:
        values: What the teacher answers on the first samples, by the item's name.
        items: What is stored of each row.
        masks: Which tokens are no padding, where anything may stand.
        form: How the answers are stored.
        reads_logits: Whether a loss reads the logits, of which an evaluation reads the largest alone.

    Raises:
        ValueError: If probabilities, or their logarithms, no longer add up to 1 in the format, some become 0 in it, or
            a few tokens are to be kept of probabilities; names the remedy.
    """
    for name, value in values.items():
        if name != LOGITS and not name.startswith(HEAD):
            continue
        item = items[name]
        mask = masks.get(item["side"]) if item["kind"] == "tokens" else None
        what = "" if name == LOGITS else f"{name}: "
        keeps_few = name == LOGITS and (form.top_k is not None or form.draws is not None)
        for rows in _rows_by_axis(value, mask):
            kind = kind_of_probabilities(rows)
            if keeps_few and kind == "probabilities":
                raise ValueError(
                    f"{what}top_k and draws keep tokens of logits, but the teacher returns probabilities, of which "
                    f"they would take the softmax once more. Leave both out and store in float32, {_REMEDY}."
                )
            if kind is not None and not keeps_few:
                _check_format(what, rows, kind, form.dtype, may_vanish=name == LOGITS and not reads_logits)


def _check_format(what: str, rows: Tensor, kind: str, dtype: torch.dtype, *, may_vanish: bool) -> None:
    named = "probabilities" if kind == "probabilities" else "logarithms of probabilities"
    if dtype == torch.bfloat16:
        raise ValueError(
            f"{what}The teacher returns {named}, which bfloat16 rounds by up to 0.4 %, so that they no longer add up "
            "to 1; store them in float16 or float32, or store logits."
        )
    rounded = rows.to(dtype)
    vanished = (rounded == 0) & (rows > 0)
    if not may_vanish and bool(vanished.any()):
        share = float(vanished.double().mean())
        raise ValueError(
            f"{what}The teacher returns {named}. {share:.1%} of those on the first rows are 0 "
            f"in {_short(dtype)}, which holds none below {_smallest(dtype):.0e}, and a loss reads their logarithms. "
            f"Store them in float32, {_REMEDY}."
        )
    if kind_of_probabilities(rounded.float()) != kind:
        raise ValueError(
            f"{what}The teacher returns {named}, which {_short(dtype)} rounds so that they no longer add up to 1. "
            f"Let the teacher compute in float32 and store so, {_REMEDY}."
        )


def _rows_by_axis(value: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Return the scores (M, C) of the first samples for each axis that may be that of the classes."""
    if value.ndim < 2 or not value.numel():
        return []
    few = max(1, _MOST // max(value[0].numel(), 1))
    value = value[:few].detach()
    if mask is not None:
        value = value[mask[:few].to(value.device)]
    found = []
    for axis in (1,) if value.ndim == 2 else (1, -1):
        rows = value.movedim(axis, -1).flatten(0, -2)
        # of texts without a mask: zeros alone, and what is no number, stand at padding
        found.append(rows[~rows.isnan().any(1) & (rows != 0).any(1)])
    return found


def _smallest(dtype: torch.dtype) -> float:
    """Return the smallest number above 0."""
    return torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
