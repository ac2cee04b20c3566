"""Rows that are padded on the left, and rows of several documents: what a network must be told of positions.

No table says which network needs what: each is asked, by a call with a row as it is and one with the same row in the
other form. What it needs is then added, or refused with the remedy.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import pairwise
from typing import Any, Literal

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn

from lightning_kd.capture.batch import logits_of
from lightning_kd.capture.columns import takes
from lightning_kd.capture.networks import original, undisturbed

How = Literal["as it is", "add", "refuse"]

_PADS = 2
_LONGEST = 8
_OFTEN, _SELDOM = 20, 50
"""Where a look at the values makes the device wait: the first so many calls are looked at, then one in so many."""

_LEFT = (
    "The {role} {name} gives a row that is padded on the left another answer than the row alone: {why}. Pad on the "
    "right (tokenizer.padding_side = 'right'){more}."
)
_GIVE = ", or call it with position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)"
_PACKED = (
    "The {role} {name} gives a row of several documents (position_ids that start anew) another answer than the "
    "documents one by one, so attention crosses from one document to another. {remedy}Otherwise give one document a "
    "row, or an attention that keeps documents apart."
)
_NO_CACHE = "Call it with use_cache=False and without an attention_mask. "


def has_left_pads(mask: Any) -> bool:
    """Whether a row of a mask (B, T) begins with padding.

    Example:
        >>> has_left_pads(torch.tensor([[1, 1], [0, 1]])), has_left_pads(torch.tensor([[1, 0]]))
        (True, False)
    """
    return isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] > 1 and not bool(mask[:, 0].all())


def positions_of(mask: Tensor) -> Tensor:
    """Return the position of each token, counted from the first that is no padding.

    Example:
        >>> positions_of(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]]))
        tensor([[0, 0, 0, 1],
                [0, 1, 2, 3]])
    """
    before = (mask.long().cumsum(-1) == 0).sum(-1, keepdim=True)
    return (torch.arange(mask.shape[1], device=mask.device) - before).clamp_min(0)


class Positions:
    """Completes the calls of a network by what it must be told of positions.

    Args:
        network: The network.
        role: ``"student"`` or ``"teacher"``, used in messages.
        may_change: Whether its calls can be changed; else the remedy is told.
        whole: Has the network compute all of its logits, where a step computes those of one position only.
    """

    def __init__(
        self,
        network: nn.Module,
        role: str,
        *,
        may_change: bool,
        whole: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.network = network
        self.role = role
        self.may_change = may_change
        self.whole = whole
        self.how: How = "as it is"
        """What rows with padding on the left need."""
        self.packed: dict[str, Any] | None = None
        """What rows of several documents are called with besides; ``None`` before there was one."""
        self._calls = 0
        self._told = False

    def settle(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find out at set-up what padding on the left needs, with a row of the first batch."""
        self.how = "as it is"
        with suppress(Exception), undisturbed(self.network):  # what cannot be called so is not asked
            self.how = self._how(args, kwargs)
        self._inspect(args, kwargs)

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the named inputs of a call, with what the network must be told.

        Raises:
            ValueError: If its answer to such rows is not that of the rows alone, and nothing it takes would mend that.
        """
        if self.how == "as it is" and "position_ids" not in kwargs:
            return kwargs
        return self._inspect(args, kwargs)

    def _inspect(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        given = kwargs.get("position_ids")
        if given is not None:
            return self._of_documents(args, kwargs, given)
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = dict(zip(takes(self.network).positional, args, strict=False)).get("attention_mask")
        if self.how == "as it is" or not isinstance(mask, Tensor) or mask.ndim != 2:
            return kwargs
        looked = self._may_look(mask)
        left = looked and has_left_pads(mask)
        if self.how == "add" and self.may_change:
            if left and not self._told:
                self._told = True
                rank_zero_info(f"The {self.role} gets position_ids, since rows are padded on the left.")
            return kwargs if looked and not left else {**kwargs, "position_ids": positions_of(mask)}
        if left:
            name = type(original(self.network)).__name__
            why = "it counts the padding as positions" if self.how == "add" else "it reads the padding"
            raise ValueError(_LEFT.format(role=self.role, name=name, why=why, more=_GIVE if self.how == "add" else ""))
        return kwargs

    def _may_look(self, tensor: Tensor) -> bool:
        """Whether to look at values now; on another device than the CPU a look waits for all that runs there."""
        self._calls += 1
        return tensor.device.type == "cpu" or self._calls <= _OFTEN or self._calls % _SELDOM == 0

    # Padding on the left

    def _how(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> How:
        taken = takes(self.network)
        named = {**dict(zip(taken.positional, args, strict=False)), **kwargs}
        mask, ids = named.get("attention_mask"), named.get("input_ids")
        fits = isinstance(mask, Tensor) and isinstance(ids, Tensor) and mask.ndim == 2 and mask.shape == ids.shape
        if not fits or "position_ids" in named or "attention_mask" not in taken.named:
            return "as it is"
        assert isinstance(mask, Tensor), "it fits"
        assert isinstance(ids, Tensor), "it fits"
        row = int(mask.sum(-1).argmax())
        kept = mask[row].nonzero().flatten()[:_LONGEST]
        if len(kept) < 2:
            return "as it is"
        alone = {
            name: value[row : row + 1, kept] if _is_along(name, value, ids) else _row(value, row, len(ids))
            for name, value in named.items()
        }
        pads = {name: value for name, value in alone.items() if _is_along(name, value, alone["input_ids"])}
        before = dict.fromkeys(pads, 0) | {"input_ids": self._pad_id(ids, mask)}
        padded = alone | {name: _pad(value, before[name]) for name, value in pads.items()}
        expected = self._answer(alone)
        if expected is None or self._is_same(expected, self._answer(padded)):
            return "as it is"
        if "position_ids" in taken.named:
            padded["position_ids"] = positions_of(padded["attention_mask"])
            if self._is_same(expected, self._answer(padded)):
                return "add"
        return "refuse"

    def _pad_id(self, ids: Tensor, mask: Tensor) -> int:
        pad = getattr(getattr(original(self.network), "config", None), "pad_token_id", None)
        if isinstance(pad, int) and pad >= 0:
            return pad
        padding = ids[mask == 0]
        return int(padding[0]) if len(padding) else 0

    def _answer(self, named: dict[str, Any]) -> Tensor | None:
        return logits_of(original(self.network)(**named))

    def _is_same(self, expected: Tensor, found: Tensor | None) -> bool:
        if found is None or found.ndim != expected.ndim:
            return True  # no answer that could be compared
        if found.ndim == 3 and found.shape[1] == expected.shape[1] + _PADS:
            found = found[:, _PADS:]
        if found.shape != expected.shape:
            return True
        return _is_close(found, expected)

    # Several documents in a row

    def _of_documents(self, args: tuple[Any, ...], kwargs: dict[str, Any], given: Any) -> dict[str, Any]:
        if self.packed is None and isinstance(given, Tensor) and given.ndim == 2 and self._may_look(given):
            begins = given[:, 1:] != given[:, :-1] + 1
            masked = kwargs.get("attention_mask")
            if isinstance(masked, Tensor) and masked.shape == given.shape:
                begins = begins & (masked[:, 1:] != 0) & (masked[:, :-1] != 0)
            if begins.any():
                self.packed = self._settle_documents(args, kwargs, given, begins)
        if not self.packed:
            return kwargs
        kept = dict(kwargs)
        if self.packed.get("without_mask"):
            kept.pop("attention_mask", None)
        return {**kept, "use_cache": False}

    def _settle_documents(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], given: Tensor, begins: Tensor
    ) -> dict[str, Any]:
        named = {**dict(zip(takes(self.network).positional, args, strict=False)), **kwargs}
        row = int(begins.any(-1).nonzero()[0])
        one = {
            name: value if name != "position_ids" and not _is_along(name, value, given) else value[row : row + 1]
            for name, value in named.items()
            if not name.startswith("label")
        }
        stops = [0, *(begins[row].nonzero().flatten() + 1).tolist(), given.shape[1]]
        mask = one.get("attention_mask")
        with undisturbed(self.network), self.whole():
            parts = [
                self._answer({n: v[:, a:b] if _is_along(n, v, one["position_ids"]) else v for n, v in one.items()})
                for a, b in pairwise(stops)
            ]
            if any(part is None or part.ndim != 3 for part in parts):
                return {}  # no answer for each token that could be compared
            expected = torch.cat([part for part in parts if part is not None], 1)
            changes: list[dict[str, Any]] = [{}]
            if self.may_change and "use_cache" in takes(self.network).named:
                changes.append({"without_mask": False})
                if isinstance(mask, Tensor) and mask.ndim == 2 and bool(mask.all()):
                    changes.append({"without_mask": True})
            for change in changes:
                call = dict(one) if not change else {**one, "use_cache": False}
                if change.get("without_mask"):
                    call.pop("attention_mask", None)
                found = self._answer(call)
                if found is not None and found.shape == expected.shape and self._fits(found, expected, mask):
                    return change
        can = "use_cache" in takes(self.network).named and not self.may_change
        name = type(original(self.network)).__name__
        raise ValueError(_PACKED.format(role=self.role, name=name, remedy=_NO_CACHE if can else ""))

    def _fits(self, found: Tensor, expected: Tensor, mask: Any) -> bool:
        if isinstance(mask, Tensor) and mask.shape == found.shape[:2]:
            found, expected = found[mask != 0], expected[mask != 0]
        return _is_close(found, expected)


def _is_along(name: str, value: Any, ids: Tensor) -> bool:
    """Whether an input has a value for each token."""
    along = isinstance(value, Tensor) and value.shape[:2] == ids.shape[:2] and ids.ndim >= 2
    return along and not name.startswith(("decoder", "label"))


def _row(value: Any, row: int, rows: int) -> Any:
    return value[row : row + 1] if isinstance(value, Tensor) and value.ndim and len(value) == rows else value


def _pad(value: Tensor, pad: int) -> Tensor:
    return torch.cat([value.new_full((value.shape[0], _PADS, *value.shape[2:]), pad), value], 1)


def _is_close(one: Tensor, other: Tensor) -> bool:
    exact = one.dtype in (torch.float32, torch.float64)
    limit = (1e-4 if exact else 3e-2) * other.abs().max().clamp_min(1e-30)
    return bool(((one - other).abs() <= limit).all())
