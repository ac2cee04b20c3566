"""Rows of several documents: whether a network answers as to the documents one by one, and what it needs for that."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lightning_kd.capture.call import Call
from lightning_kd.capture.columns import takes
from lightning_kd.capture.networks import original
from lightning_kd.capture.probe import Looks, answer, is_along, is_close, named_inputs, probing

Change = dict[str, bool]
"""What is changed in a call: nothing, or ``use_cache=False`` with or without the mask."""

_PACKED = (
    "The {role} {name} gives a row of several documents (position_ids that start anew) another answer than the "
    "documents one by one, so attention crosses from one document to another. {remedy}Otherwise give one document a "
    "row, or an attention that keeps documents apart."
)
_UNTRIED = (
    "Whether the {role} {name} keeps apart the documents of a row (position_ids that start anew) could not be tried: "
    "{why}. Give one document a row."
)
_NO_CACHE = "Call it with use_cache=False and without an attention_mask. "
_GIVE = "It was called without position_ids; call it with those of the batch. "
_TAKES_NONE = "It takes no position_ids, which tell where a document begins. "


def begins_in(positions: Tensor, mask: Any = None) -> Tensor:
    """Return at which tokens but the first (B, T - 1) a document begins, by positions that start anew.

    Args:
        positions: The positions (B, T).
        mask: Which tokens are no padding, ``None`` if all are.

    Example:
        >>> begins_in(torch.tensor([[0, 1, 0, 1, 0]]))
        tensor([[False,  True, False,  True]])
        >>> begins_in(torch.tensor([[0, 1, 0, 1, 0]]), torch.tensor([[1, 1, 1, 1, 0]]))
        tensor([[False,  True, False, False]])
    """
    begins = positions[:, 1:] != positions[:, :-1] + 1
    if not isinstance(mask, Tensor) or mask.shape != positions.shape:
        return begins
    real = mask != 0
    return begins & real[:, 1:] & (real.cumsum(-1)[:, :-1] > 0)  # padding before the first document is none


def document_starts(positions: Tensor | None, mask: Tensor | None, size: torch.Size) -> Tensor | None:
    """Return which tokens are the first of a document behind another one in their row; ``None`` if nothing tells.

    Args:
        positions: The positions (B, T), or (1, T) for all rows.
        mask: Which tokens are no padding.
        size: How many rows and tokens there are.

    Example:
        >>> document_starts(torch.tensor([[0, 1, 0]]), None, torch.Size([2, 3]))
        tensor([[False, False,  True],
                [False, False,  True]])
    """
    if positions is None or len(size) != 2 or positions.shape[1:] != size[1:] or len(positions) not in (1, size[0]):
        return None
    positions = positions.expand(size)
    if mask is not None:
        mask = mask[:, None].expand(size) if mask.ndim == 1 and len(mask) == size[0] else mask
        mask = mask.to(positions.device)
    return torch.nn.functional.pad(begins_in(positions, mask), (1, 0))


def position_ids_of(call: Call, network: nn.Module) -> Tensor | None:
    """Return the positions (B, N) that a network was told, ``None`` if it was not."""
    given = call.kwargs.get("position_ids")
    if given is None and len(call.args) > 1:
        given = dict(zip(takes(network).positional, call.args, strict=False)).get("position_ids")
    return given if isinstance(given, Tensor) and given.ndim == 2 and not given.is_floating_point() else None


class Documents:
    """Completes the calls of a network with rows of several documents.

    Args:
        network: The network.
        role: ``"student"`` or ``"teacher"``, used in messages.
        may_change: Whether its calls can be changed; else the remedy is told.
        whole: Has the network compute all of its logits, where a step computes those of one position only.
    """

    def __init__(
        self, network: nn.Module, role: str, *, may_change: bool, whole: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self.network = network
        self.role = role
        self.may_change = may_change
        self.whole = whole
        self._looks = Looks()
        self._known: dict[str, Change] = {}
        """What calls need, by whether they have a mask and whether that has padding."""

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any], given: Any, mask: Any) -> dict[str, Any]:
        """Return the named inputs of a call with position_ids.

        Args:
            args: Its positional inputs.
            kwargs: Its named inputs.
            given: The positions.
            mask: The mask that it has, if any.

        Raises:
            ValueError: If documents do not stay apart.
        """
        if not isinstance(given, Tensor) or given.ndim != 2:
            return kwargs
        change = self._known.get("no mask") if mask is None else self._of_masked(mask)
        if change is None:
            change = self._find(args, kwargs, given, mask)
        if not change:
            return kwargs
        kept = dict(kwargs)
        if change["without_mask"]:
            kept.pop("attention_mask", None)
        return {**kept, "use_cache": False}

    def check_told(self, args: tuple[Any, ...], kwargs: dict[str, Any], given: Tensor, mask: Any) -> None:
        """Raise a ``ValueError`` if a network that is not told the positions in a batch does not keep documents apart.

        Args:
            args: Its positional inputs.
            kwargs: Its named inputs.
            given: The positions in the batch.
            mask: Which tokens are no padding, if the batch says so.
        """
        if "told" in self._known or not self._looks(given, ("told", self.network.training)):
            return
        begins = begins_in(given, mask)
        if begins.any():
            self._known["told"] = self._settle(args, kwargs, given, begins, mask, told=True)

    def _of_masked(self, mask: Any) -> Change | None:
        """Return what a call with a mask needs, as far as that is known; the mask is looked at only if that decides."""
        full, part = self._known.get("mask of ones"), self._known.get("mask")
        if full == part:
            return full
        if isinstance(mask, Tensor) and self._looks(mask, ("mask", self.network.training)):
            return part if bool((mask == 0).any()) else full
        return full if part is None else part

    def _find(self, args: tuple[Any, ...], kwargs: dict[str, Any], given: Tensor, mask: Any) -> Change | None:
        if not self._looks(given, (mask is None, self.network.training)):
            return None
        begins = begins_in(given, mask)
        if not begins.any():
            return None
        key = "no mask"
        if mask is not None:
            key = "mask" if isinstance(mask, Tensor) and bool((mask == 0).any()) else "mask of ones"
        self._known[key] = change = self._settle(args, kwargs, given, begins, mask)
        return change

    def _settle(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: Tensor,
        begins: Tensor,
        mask: Any,
        *,
        told: bool = False,
    ) -> Change:
        named = named_inputs(self.network, args, kwargs)
        can_change = self.may_change and not told and "use_cache" in takes(self.network).named
        changes: list[Change] = [{}]
        if can_change:
            changes.append({"without_mask": False})
            if isinstance(mask, Tensor) and mask.ndim == 2 and "attention_mask" in kwargs:
                changes.append({"without_mask": True})
        name = type(original(self.network)).__name__
        for plain in (True, False):
            try:
                with probing(self.network, self.whole, plain=plain):
                    rows = [self._row(named, given, begins, mask, row) for row in _telling(begins, mask)]
                    for change in changes:
                        if all(self._keeps_apart(one, expected, real, change) for one, expected, real in rows):
                            return change
                break
            except Exception as error:
                if not plain:
                    why = (str(error) or type(error).__name__).rstrip(".")
                    raise ValueError(_UNTRIED.format(role=self.role, name=name, why=why)) from error
        remedy = ""
        if told:
            remedy = _GIVE if "position_ids" in takes(self.network) else _TAKES_NONE
        elif "use_cache" in takes(self.network).named and not self.may_change:
            remedy = _NO_CACHE
        raise ValueError(_PACKED.format(role=self.role, name=name, remedy=remedy))

    def _row(
        self, named: dict[str, Any], given: Tensor, begins: Tensor, mask: Any, row: int
    ) -> tuple[dict[str, Any], Tensor | None, Tensor | None]:
        """Return a row as it is called, the answers to its documents one by one, and which of its tokens are real."""
        rows = len(given)
        one = {
            name: value[row : row + 1]
            if isinstance(value, Tensor) and value.ndim and (is_along(name, value, given) or len(value) == rows > 1)
            else value
            for name, value in named.items()
        }
        real = mask[row : row + 1] != 0 if isinstance(mask, Tensor) and mask.shape == given.shape else None
        stops = [0, *(begins[row].nonzero().flatten() + 1).tolist(), given.shape[1]]
        tokens = given[row : row + 1]
        parts = [
            answer(self.network, {n: v[:, a:b] if is_along(n, v, tokens) else v for n, v in one.items()})
            for a, b in pairwise(stops)
        ]
        found = [part for part in parts if part is not None and part.ndim == 3]
        return one, torch.cat(found, 1) if len(found) == len(parts) else None, real

    def _keeps_apart(self, one: dict[str, Any], expected: Tensor | None, real: Tensor | None, change: Change) -> bool:
        if expected is None:
            return True  # no answer for each token that could be compared
        call = {**one, "use_cache": False} if change else dict(one)
        if change.get("without_mask"):
            call.pop("attention_mask", None)
        found = answer(self.network, call)
        if found is None or found.shape != expected.shape:
            return False
        if real is not None and real.shape == found.shape[:2]:
            found, expected = found[real], expected[real]
        return is_close(found, expected)


def _telling(begins: Tensor, mask: Any) -> list[int]:
    """Return the rows that tell: one of several documents, and the one with the most padding."""
    several = begins.any(-1)
    if not isinstance(mask, Tensor) or mask.shape[:1] != begins.shape[:1] or mask.ndim != 2:
        return [int(several.nonzero()[0])]
    pads = (mask == 0).sum(-1)
    first = int(torch.where(several, pads, -1).argmax())
    most = int(pads.argmax())
    return [first] if pads[most] == pads[first] else [first, most]
