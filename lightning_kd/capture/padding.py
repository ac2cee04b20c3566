"""Rows that are padded on the left, and rows of several documents: what a network must be told of positions.

No table says which network needs what: each is asked, by a call with a row as it is and one with the same row in the
other form. What it needs is then added, or refused with the remedy.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_kd.capture.call import Call
from lightning_kd.capture.call_mask import is_added
from lightning_kd.capture.columns import columns_of, takes
from lightning_kd.capture.documents import Documents
from lightning_kd.capture.networks import original
from lightning_kd.capture.padded_rows import How, PaddedRows, positions_of
from lightning_kd.capture.probe import (
    Looks,
    is_shared_out,
    name_of_tokens,
    named_inputs,
    probing,
)
from lightning_kd.capture.rows import is_of_batch

_LEFT = (
    "The {role} {name} gives a row that is padded on the left another answer than the row alone: {why}. Pad on the "
    "right (tokenizer.padding_side = 'right'){more}."
)
_RIGHT = (
    "The {role} {name} gives a row that is padded on the right another answer than the row alone, though it is called "
    "with the attention_mask: it reads the padding, so what it answers depends on the longest row of the batch. Pad on "
    "the left (tokenizer.padding_side = 'left') if it was made for that, as XLNet was."
)
_GIVE = ", or call it with position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)"
_GIVE_MASK = ", or call it with the attention_mask, which it takes"
_UNTRIED = (
    "Whether the {role} {name} gives a row that is padded on the left the answer of the row alone could not be tried: "
    "{why}. Pad on the right (tokenizer.padding_side = 'right')."
)
_TOLD = ("attention_mask", "position_ids")
"""Columns of a batch that tell of padding and documents, also to those who are not called with them."""


def has_left_pads(mask: Any) -> bool:
    """Whether a row of a mask (B, T) begins with padding.

    Example:
        >>> has_left_pads(torch.tensor([[1, 1], [0, 1]])), has_left_pads(torch.tensor([[1, 0]]))
        (True, False)
    """
    return isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] > 1 and not bool(mask[:, 0].all())


class Positions:
    """Completes the calls of a network by what it must be told of positions.

    Args:
        network: The network.
        role: ``"student"`` or ``"teacher"``, used in messages.
        may_change: Whether its calls can be changed; else the remedy is told.
        whole: Has the network compute all of its logits, where a step computes those of one position only.
        waits: Whether :meth:`settle` is still to come.
    """

    def __init__(
        self,
        network: nn.Module,
        role: str,
        *,
        may_change: bool,
        whole: Callable[[], AbstractContextManager[None]] = nullcontext,
        waits: Callable[[], bool] = lambda: False,
    ) -> None:
        self.role = role
        self.may_change = may_change
        self.whole = whole
        self.waits = waits
        self.documents = Documents(network, role, may_change=may_change, whole=whole)
        self.network = network
        self._hows: dict[bool, How] = {}
        """What rows with padding on the left need, by whether the network is called with a mask."""
        self._guessed: set[bool] = set()
        """Where the token of padding was guessed."""
        self._why: dict[bool, str] = {}
        """Where that could not be tried, and why."""
        self._looks = Looks()
        self._told = False
        self._settled = False
        self.reads_keys = False
        """Whether a loss reads queries and keys: turned by their positions, they differ where the answer does not."""

    @property
    def network(self) -> nn.Module:
        """The network."""
        return self._network

    @network.setter
    def network(self, network: nn.Module) -> None:
        self._network = self.documents.network = network

    @property
    def how(self) -> How | None:
        """What rows with padding on the left need that come with a mask; ``None`` if that is not known."""
        return self._hows.get(True)

    def settle(self, args: tuple[Any, ...], kwargs: dict[str, Any], batch: Any = None) -> None:
        """Find out at set-up what padding on the left needs, with a row of the first batch.

        That batch need have no such row, and no mask: others may follow.

        Args:
            args: What the network is called with.
            kwargs: What it is called with by name.
            batch: The batch, which may tell what the network is not called with.
        """
        self._settled = True
        self._hows, self._why = {}, {}
        self._guessed = set()
        named = named_inputs(self.network, args, kwargs)
        mask = named.get("attention_mask")
        if isinstance(mask, Tensor) and is_added(mask):  # its user says by other means what is padding
            self._hows = {True: "as it is", False: "as it is"}
            return
        takes_mask = "attention_mask" in takes(self.network).named
        if "position_ids" not in named and (mask is not None or takes_mask):
            self._find(named, mask)
            self._tell_of_right(named, mask)
        elif mask is None and "attention_mask" not in takes(self.network):
            self._hows[True] = "as it is"
        self._inspect(args, kwargs)
        self.check_told(args, kwargs, batch)

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the named inputs of a call, with what the network must be told.

        Raises:
            ValueError: If its answer to such rows is not that of the rows alone, and nothing it takes would mend that.
        """
        if self._hows.get(True) == "as it is" and "position_ids" not in kwargs:
            return kwargs
        return self._inspect(args, kwargs) if self._settled or not self.waits() else kwargs

    def check_told(self, args: tuple[Any, ...], kwargs: dict[str, Any], batch: Any) -> None:
        """Raise a ``ValueError`` if a batch tells of padding or documents what the network is not told, and needs.

        Args:
            args: What the network is called with.
            kwargs: What it is called with by name.
            batch: The batch, whose columns tell.
        """
        columns = columns_of(batch)
        if columns is None:
            return
        missing = [name for name in _TOLD if name in columns and name not in kwargs]
        if missing and (self._settled or not self.waits()):
            self._check_missing(args, kwargs, columns, missing)

    def _check_missing(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], columns: Mapping[str, Any], missing: list[str]
    ) -> None:
        mask, given = columns.get("attention_mask"), columns.get("position_ids")
        known = self._hows.get(False) == "as it is" or "attention_mask" not in missing
        if known and "position_ids" not in missing:
            return
        named = named_inputs(self.network, args, kwargs)
        tokens = named.get(name_of_tokens(named) or "")
        missing = [name for name in missing if name not in named]
        if tokens is None or not missing or not is_of_batch(Call(args=args, kwargs=kwargs), columns):
            return
        names = [name for name, value in columns.items() if value is tokens]
        if names and not {"input_ids", "inputs_embeds", name_of_tokens(named)} & {*names}:
            return  # other tokens, such as the teacher's own
        fits = isinstance(mask, Tensor) and mask.shape == tokens.shape[:2]
        if "attention_mask" in missing and "position_ids" not in named and fits and not known:
            self._of_padding(args, kwargs, mask, given=False)
        if "position_ids" in missing and isinstance(given, Tensor) and given.shape == tokens.shape[:2]:
            self.documents.check_told(args, kwargs, given, mask if fits else None)

    def _inspect(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        mask, given = kwargs.get("attention_mask"), kwargs.get("position_ids")
        if args and (mask is None or given is None):
            by_place = dict(zip(takes(self.network).positional, args, strict=False))
            mask = by_place.get("attention_mask", mask)
            given = by_place.get("position_ids", given)
        if given is not None:
            return self.documents(args, kwargs, given, mask)
        return self._of_padding(args, kwargs, mask, given=True)

    # Padding on the left

    def _of_padding(self, args: tuple[Any, ...], kwargs: dict[str, Any], mask: Any, *, given: bool) -> dict[str, Any]:
        """Return the named inputs of a call whose rows may be padded on the left.

        Args:
            args: Its positional inputs.
            kwargs: Its named inputs.
            mask: Which tokens are no padding.
            given: Whether the network is called with the mask.
        """
        how = self._hows.get(given)
        if how == "as it is" or not isinstance(mask, Tensor) or mask.ndim != 2:
            return kwargs
        looked = how is None or self._looks(mask, (given, self.network.training))
        left = looked and has_left_pads(mask)
        if left and (how is None or given in self._guessed):
            how = self._find_now(args, kwargs, mask, given=given)
        if how == "add" and self.may_change:
            if left and not self._told:
                self._told = True
                rank_zero_info(f"The {self.role} gets position_ids, since rows are padded on the left.")
            return kwargs if looked and not left else {**kwargs, "position_ids": positions_of(mask)}
        if left and how != "as it is":
            self._refuse(how, given=given)
        return kwargs

    def _refuse(self, how: How | None, *, given: bool) -> None:
        name = type(original(self.network)).__name__
        if how is None:
            tried = self._why.get(given, "its rows cannot be made longer")
            raise ValueError(_UNTRIED.format(role=self.role, name=name, why=tried.rstrip(".")))
        why = "it counts the padding as positions" if how == "add" else "it reads the padding"
        more = _GIVE if how == "add" else ""
        if not given and "attention_mask" in takes(self.network):
            more = _GIVE_MASK
        raise ValueError(_LEFT.format(role=self.role, name=name, why=why, more=more))

    def _find_now(self, args: tuple[Any, ...], kwargs: dict[str, Any], mask: Tensor, *, given: bool) -> How | None:
        """Find out within a step, for set-up did not meet such a batch."""
        if is_shared_out(self.network):
            self._why.setdefault(given, "the first batch had no such rows, and its weights are shared out by now")
            return self._hows.get(given)
        return self._find(named_inputs(self.network, args, kwargs), mask, given=given)

    def _find(self, named: dict[str, Any], mask: Any, *, given: bool = True) -> How | None:
        """Find out what padding on the left needs, and return it; ``None`` if that cannot be tried."""
        self._hows.pop(given, None)
        tokens = named.get(name_of_tokens(named) or "")
        real = mask
        if isinstance(tokens, Tensor) and mask is None:
            real = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
        if tokens is None or not isinstance(real, Tensor) or real.shape != tokens.shape[:2]:
            self._hows[given] = "as it is"  # there are no rows of tokens
            return "as it is"
        named = {**named, "attention_mask": real} if given else named
        for way, plain in product(self._rows().ways(), (True, False)):
            try:
                with probing(self.network, self.whole, plain=plain):
                    how = way(named, real, self._pad_id(tokens, real, given=given))
            except Exception as error:
                self._why.setdefault(given, str(error) or type(error).__name__)
            else:
                if how is not None:
                    self._hows[given] = how
                    break
        return self._hows.get(given)

    def _rows(self) -> PaddedRows:
        return PaddedRows(self.network, reads_keys=self.reads_keys)

    def _tell_of_right(self, named: dict[str, Any], mask: Any) -> None:
        """Warn of a network that reads padding on the right, if the first batch has any; its answer may be meant so."""
        if not isinstance(mask, Tensor) or mask.ndim != 2 or bool(mask[:, -1].all()):
            return
        tokens = named.get(name_of_tokens(named) or "")
        if tokens is None or mask.shape != tokens.shape[:2]:
            return
        try:
            with probing(self.network, self.whole, plain=True):
                reads = self._rows().reads_behind(named, mask, self._pad_id(tokens, mask, given=True))
        except Exception:  # the network takes no row of another length, so nothing is known that could be said
            return
        if reads:
            rank_zero_warn(_RIGHT.format(role=self.role, name=type(original(self.network)).__name__))

    def _pad_id(self, tokens: Tensor, real: Tensor, *, given: bool) -> int:
        self._guessed.discard(given)
        config = getattr(original(self.network), "config", None)
        pad, size = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", None)
        if isinstance(pad, int) and pad >= 0 and not (isinstance(size, int) and pad >= size):
            return pad
        padding = tokens[real == 0] if tokens.ndim == 2 else tokens[:0]
        if len(padding):
            return int(padding[0])
        if tokens.ndim == 2:
            self._guessed.add(given)
        return 0
