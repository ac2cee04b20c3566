"""What is stored of one batch: the logits and layers by row, in the format of the store."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_kd.cache.asker import Asker, bytes_of
from lightning_kd.capture.batch import Batch
from lightning_kd.capture.contents import contents, inputs_of, tokens_that_count
from lightning_kd.capture.decoder_mask import Side, is_encoder_decoder, masks_of, sides_of
from lightning_kd.capture.heads import SeveralHeadsError, head_of
from lightning_kd.files.store.bits import bits_of, packed
from lightning_kd.losses.tokens.sparse import SparseLogits
from lightning_kd.teachers.base import Lesson
from lightning_kd.teachers.cached import HEAD, LAYER, LOGITS


@dataclass(frozen=True)
class Format:
    """How answers are stored.

    Args:
        dtype: Format of the numbers.
        top_k: How many of the most likely tokens are kept at each position, ``None`` for all.
        draws: How many draws out of the teacher's distribution are kept at each position in their place.
    """

    dtype: torch.dtype
    top_k: int | None = None
    draws: int | None = None


def values_of(asker: Asker, lesson: Lesson) -> dict[str, Tensor]:
    """Return what a fit would read of an answer, by the names under which it is stored.

    Args:
        asker: Who has asked, which knows the layers and outputs that the losses read.
        lesson: The answer.
    """
    found = {f"{HEAD}{head}": head_of(lesson.output, head) for head in asker.heads}
    # of several outputs of one shape it is not known which the task reads, but then it may read none of the teacher's
    with suppress(SeveralHeadsError) if found else nullcontext():
        logits = asker.logits(lesson)
        if isinstance(logits, Tensor):
            found[LOGITS] = logits
    return found | {f"{LAYER}{name}": lesson.features[name] for name in asker.layers}


def describe_items(
    values: Mapping[str, Tensor], read: Batch, form: Format, network: nn.Module
) -> dict[str, dict[str, Any]]:
    """Return as plain data what is stored of each row.

    Args:
        values: Logits and layers of the first batch, by the item's name.
        read: The batch taken apart.
        network: The teacher.
        form: How they are stored.

    Raises:
        ValueError: If few tokens are to be kept of what are no logits of tokens.
    """
    masks, two_sides = masks_of(read.kwargs, read.target), is_encoder_decoder(network)
    items: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        in_decoder = name == LOGITS or "decoder" in sides_of(network, [name.removeprefix(LAYER)])
        side: Side = "decoder" if two_sides and in_decoder else "encoder"
        mask = masks[side]
        of_tokens = mask is not None and value.ndim >= 2 and value.shape[:2] == mask.shape
        item: dict[str, Any] = {
            "kind": "tokens" if of_tokens else "dense",
            "side": side,
            "shape": list(value.shape[2:] if of_tokens else value.shape[1:]),
            "dtype": str(form.dtype).removeprefix("torch."),
        }
        if name == LOGITS and (form.top_k or form.draws):
            kept = form.top_k or form.draws or 0
            if value.ndim != 3 or (form.top_k is not None and kept > value.shape[-1]):
                raise ValueError(
                    f"top_k and draws keep tokens of logits (B, T, V) with V >= top_k, but the teacher's logits have "
                    f"the shape {tuple(value.shape)}; leave them out."
                )
            item |= {"top_k": form.top_k, "draws": form.draws, "vocabulary": value.shape[-1]}
            item["bits"] = bits_of(value.shape[-1])
        items[name] = item
    return items


def rows_of(
    values: Mapping[str, Tensor], read: Batch, items: Mapping[str, Mapping[str, Any]], form: Format, rows: Sequence[int]
) -> dict[str, Tensor]:
    """Return what is stored of a batch, on the CPU; positions of all rows one after another.

    Args:
        values: Logits and layers, by the item's name.
        read: The batch taken apart.
        items: What is stored of each row.
        form: How it is stored.
        rows: The numbers of the rows.

    Raises:
        ValueError: If a number is not finite, or does not fit the format; names the row.
    """
    masks, stored = masks_of(read.kwargs, read.target), {}
    for name, item in items.items():
        mask = masks[item["side"]]
        value = values[name].detach().cpu()
        of_tokens = item["kind"] == "tokens"
        shape = list(value.shape[2:] if of_tokens else value.shape[1:])
        if of_tokens:
            if mask is None or value.shape[:2] != mask.shape:
                raise ValueError(f"{name}: a batch has no mask of its positions, unlike the first one.")
            owner = torch.arange(len(value)).repeat_interleave(mask.sum(1))
            value = value[mask]
        else:
            owner = torch.arange(len(value))
        if shape != item["shape"]:
            raise ValueError(
                f"{name}: rows from {rows[0]} on have the shape {shape}, but those before {item['shape']}; cut or pad "
                "the samples to one size, or give texts with an attention_mask."
            )
        if item.get("top_k") or item.get("draws"):
            kept = _few(value, item, form, rows)
            ids = packed(kept.ids.reshape(-1, kept.ids.shape[-1]), item["bits"])
            stored[f"{name}#ids"] = ids.view(*value.shape[:-1], ids.shape[1])
            if item.get("draws"):
                continue
            name, value = f"{name}#log_probs", kept.log_probs
        stored[name] = _in_format(name, value, form.dtype, owner, rows)
    for item in items.values():
        mask = masks[item["side"]]
        if item["kind"] == "tokens" and mask is not None:
            stored[f"{item['side']}.lengths"] = mask.sum(1)
    for name, of in contents(read.args, read.kwargs).items():
        stored[f"input:{name}"] = of.cpu()
    return stored


def _few(value: Tensor, item: Mapping[str, Any], form: Format, rows: Sequence[int]) -> SparseLogits:
    if form.top_k is not None:
        return SparseLogits.top_k(value, form.top_k)
    assert form.draws is not None, "one of both"
    generator = torch.Generator().manual_seed(rows[0])
    chances = torch.softmax(value.float().reshape(-1, value.shape[-1]), -1)
    ids = torch.multinomial(chances, form.draws, replacement=True, generator=generator)
    ids = ids.view(*value.shape[:-1], form.draws)
    return SparseLogits(ids, torch.zeros(ids.shape))


def _in_format(name: str, value: Tensor, dtype: torch.dtype, owner: Tensor, rows: Sequence[int]) -> Tensor:
    """Return numbers in the format of the store, and refuse those that it cannot hold."""
    cast = value.to(dtype)
    if name.endswith("#log_probs"):  # a token without probability is stored as such
        return cast
    bad = ~cast.isfinite().reshape(len(cast), -1).all(1)
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        row, one = rows[int(owner[first])], value[first]
        if bool(one.isfinite().all()):
            raise ValueError(
                f"{name}: row {row} has a number of {float(one.abs().max()):.4g}, which does not fit {dtype}: the "
                f"largest is {torch.finfo(dtype).max:.4g}. Store in another format: dtype='bfloat16' or 'float32'."
            )
        raise ValueError(f"{name}: the teacher's answer on row {row} is not finite; look at this sample.")
    return cast


def bytes_per_row(stored: Mapping[str, Tensor], rows: int) -> float:
    """Return how many bytes a row takes on the disk, in the mean."""
    return float(np.ceil(sum(t.numel() * t.element_size() for t in stored.values()) / max(rows, 1))) + 8.0


def formats_of_inputs(read: Batch) -> dict[str, str]:
    """Return the format of each input, by the names that ``contents`` gives them; that of words is of no account."""
    first = {name: value if isinstance(value, Tensor) else value[0] for name, value in _inputs(read).items()}
    dtypes = {name: one.dtype if isinstance(one, Tensor) else torch.float32 for name, one in first.items()}
    return {name: str(dtype).removeprefix("torch.") for name, dtype in dtypes.items()}


def digests(read: Batch) -> Tensor:
    """Return for each row eight bytes of the SHA-256 of its inputs, exact to the bit; padding does not count."""
    inputs = dict(sorted(_inputs(read).items()))
    counting = {n: tokens_that_count(n, v, read.kwargs) for n, v in inputs.items() if isinstance(v, Tensor)}
    found = []
    for row in range(min(map(len, inputs.values()))):
        digest = hashlib.sha256()
        for name, value in inputs.items():
            one, counts = value[row], counting.get(name)
            if counts is not None:
                one = one[counts[row]]
            digest.update(bytes_of(one) if isinstance(one, Tensor) else repr(one).encode())
        found.append(int.from_bytes(digest.digest()[:8], "little", signed=True))
    return torch.tensor(found, dtype=torch.long)


def _inputs(read: Batch) -> dict[str, Any]:
    return inputs_of(read.args, read.kwargs)
