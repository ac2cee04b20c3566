"""What a teacher says of the first rows, by which a store knows its own teacher again: equal weights do not tell."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lightning_kd.capture.batch import Batch
from lightning_kd.capture.contents import drawn_weights
from lightning_kd.capture.decoder_mask import masks_of
from lightning_kd.files.store.manifest import FIRST_ANSWERS, OPTIONS, TAKES, differences, shard_name

_ROWS = 32
"""Of how many rows the numbers are kept."""
_MOVEMENT = {"float32": 1e-3, "accelerator": 3e-2, "16 bits": 1e-1}
_REMEDY = "Give another folder, or delete this one."


def first_answers(
    values: Mapping[str, Tensor], read: Batch, items: Mapping[str, Mapping[str, Any]], made_with: Mapping[str, Any]
) -> dict[str, Any]:
    r"""Return, as plain data, three numbers of each item of each of the first rows: its norm and two projections.

    .. math::
        \left( \lVert x \rVert, \; \sum_{tj} u_j u_t x_{tj}, \; \sum_{tj} v_j v_t x_{tj} \right)

    over the positions t that count, of a dense item one. They are of the answers before tokens are left out or drawn,
    so they do not depend on chance.

    Args:
        values: Logits and layers (B, *) of the first batch, by the item's name.
        read: The batch taken apart.
        items: What is stored of each row.
        made_with: Device and format of the teacher.
    """
    masks = masks_of(read.kwargs, read.target)
    numbers = {}
    for name, item in items.items():
        mask = masks[item["side"]] if item["kind"] == "tokens" else None
        rows = values[name][:_ROWS].detach()
        kept = (row.unsqueeze(0) if mask is None else row[mask[i].to(row.device)] for i, row in enumerate(rows))
        numbers[name] = [_numbers(row.cpu().reshape(len(row), math.prod(row.shape[1:]))) for row in kept]
    return {"numbers": numbers, **{name: made_with[name] for name in ("dtype", "device")}}


def _numbers(positions: Tensor) -> list[float]:
    """Return the norm and two projections of what stands at the positions (T, D) of a row."""
    finite = positions.float().nan_to_num(0.0, 0.0, 0.0)  # a token without probability may have a logit of -inf
    here = finite.device
    projected = finite @ drawn_weights(finite.shape[1], here) * drawn_weights(len(finite), here)
    return [float(torch.linalg.vector_norm(finite, dtype=torch.float64)), *projected.sum(0).tolist()]


def check_same_teacher(
    folder: Path, there: dict[str, Any], wanted: dict[str, Any], dtype: torch.dtype, first: Mapping[str, Tensor] | None
) -> None:
    """Raise a ``ValueError`` if the plan of a store is not that of another writer.

    Args:
        folder: The folder of the store.
        there: Its plan; one of an earlier version has no first answers.
        wanted: The plan of the writer.
        dtype: The format of the store.
        first: What is to be stored of the first rows, to be compared with the first shard of a store that has no
            first answers; ``None`` if that shard is not there.
    """
    theirs, ours = there["teacher"].pop(FIRST_ANSWERS, None), wanted["teacher"].pop(FIRST_ANSWERS)
    for plan in (there, wanted):
        plan["teacher"].pop(TAKES, None)  # another version of a network may name more inputs
    if there["data"].get(OPTIONS) is None:
        wanted["data"].pop(OPTIONS)
        there["data"].pop(OPTIONS, None)
    found = differences(there, wanted)
    if found:
        raise ValueError(f"{str(folder)!r} holds another store already: {'; '.join(found[:4])}. {_REMEDY}")
    if theirs is None:
        if first is not None:
            distance(folder, first, share_of(dtype, ours))
        return
    share = share_of(dtype, theirs, ours)
    for name, mine in ours["numbers"].items():
        stored = theirs["numbers"].get(name, [])
        count = min(len(mine), len(stored))
        one, other = torch.tensor(stored[:count]), torch.tensor(mine[:count])
        if count:
            _check(folder, name, float((one - other).abs().max()), float(one[:, 0].max()), share)


def distance(folder: Path, first: Mapping[str, Tensor], share: float) -> str:
    """Say how far the teacher is from what is stored of the first rows.

    Args:
        folder: The folder of the store.
        first: What would be stored of the first rows.
        share: By how much of its size an answer may move.

    Raises:
        ValueError: If it is another teacher.
    """
    there = load_file(folder / shard_name(0))
    off = {}
    for name, value in first.items():
        if name in there and value.is_floating_point() and not name.startswith("input:"):
            count = min(len(value), len(there[name]))
            stored = there[name][:count].double()
            gap = (stored - value[:count].cpu().double()).nan_to_num(0.0).abs()
            off[name] = float(gap.max()) if gap.numel() else 0.0
            size = stored.nan_to_num(0.0, 0.0, 0.0).abs()
            _check(folder, name, off[name], float(size.max()) if size.numel() else 0.0, share)
    told = ", ".join(f"{name} by at most {gap:.2g}" for name, gap in off.items())
    return f"On the first rows the teacher's answers differ from the stored ones: {told}."


def share_of(dtype: torch.dtype, *made_with: Mapping[str, Any]) -> float:
    r"""Return by how much of its size an answer of one teacher may move, and be rounded when it is stored.

    A rounding of u in each of n operations adds up to about :math:`u \sqrt{n}`, and a deep network has some 200. In
    bfloat16 u is 2e-3, which makes 3e-2, and in TF32, in which accelerators may compute, 5e-4, which makes 7e-3. A
    network may magnify it: with drawn weights a ViT-B/16 moves by 1.3e-2 and 1e-3, EfficientNet-B0 by 3e-2 and 3e-3. So
    some three times as much is allowed. In float32 it makes 1e-6; what is allowed is what another batch may change.
    """
    sixteen = any(str(made.get("dtype")).removeprefix("torch.") in ("float16", "bfloat16") for made in made_with)
    accelerator = any(made.get("device") != "cpu" for made in made_with)
    kind = "16 bits" if sixteen else "accelerator" if accelerator else "float32"
    return max(_MOVEMENT[kind], share_in_batches(dtype)) + torch.finfo(dtype).eps


def share_in_batches(dtype: torch.dtype) -> float:
    """Return by how much of its size an answer may depend on the other rows of the batch, as rounding makes it."""
    return 2e-2 if dtype.itemsize < 4 else 1e-3


def _check(folder: Path, name: str, off: float, size: float, share: float) -> None:
    if off > share * size:
        raise ValueError(
            f"{str(folder)!r} holds the answers of another teacher, though its weights are the same: on the first rows "
            f"{name} differs by {off:.2g}, where the stored answers are of the size {size:.2g}. Another version of "
            f"torch, device or batch size changes up to {share:.2g} of that. What differs is no weight: an activation, "
            "a stride, an eps or another attribute, how an Ensemble averages, a function that makes the teacher's "
            f"inputs, or these rows of the data. {_REMEDY}"
        )
