"""Whether a network answers to a row that is padded as to the row alone: it is called with both.

No table says which network needs what of positions, so each is asked.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_kd.capture.columns import takes
from lightning_kd.capture.networks import original
from lightning_kd.capture.probe import answer, is_along, is_close, name_of_tokens

How = Literal["as it is", "add", "refuse"]
"""What rows with padding on the left need: nothing, positions beside them, or nothing helps."""

_PADS = 2
_LONGEST = 8


def positions_of(mask: Tensor) -> Tensor:
    """Return the position of each token, counted from the first that is no padding.

    Example:
        >>> positions_of(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]]))
        tensor([[0, 0, 0, 1],
                [0, 1, 2, 3]])
    """
    before = (mask.long().cumsum(-1) == 0).sum(-1, keepdim=True)
    return (torch.arange(mask.shape[1], device=mask.device) - before).clamp_min(0)


class PaddedRows:
    """Calls a network with a row as it is and with the same row padded, and tells whether its answers are the same.

    Args:
        network: The network.
        reads_keys: Whether a loss reads queries and keys: turned by their positions, they differ where the answer does
            not.
    """

    def __init__(self, network: nn.Module, *, reads_keys: bool) -> None:
        self.network = network
        self.reads_keys = reads_keys

    def ways(self) -> tuple[Callable[[dict[str, Any], Tensor, int], How | None], ...]:
        """Return the ways to find out what padding on the left needs, the cheapest first.

        Each takes the inputs by name, which tokens are no padding, and the token of padding. It returns ``None`` if it
        cannot tell.
        """
        return self._of_row, self._of_full_row, self._of_rows

    def _of_row(self, named: dict[str, Any], real: Tensor, pad: int) -> How | None:
        """Compare a row that is cut short, which is cheap, with one with padding before it."""
        short = self._short_row(named, real, pad)
        if short is None:
            return None
        one, along, pads = short
        padded = one | {name: _join(pads[name], value) for name, value in along.items()}
        return self._compare(one, padded, self._is_same)

    def reads_behind(self, named: dict[str, Any], real: Tensor, pad: int) -> bool:
        """Whether a row that is cut short gets another answer with padding behind it."""
        short = self._short_row(named, real, pad)
        if short is None:
            return False
        one, along, pads = short
        padded = one | {name: _join(value, pads[name]) for name, value in along.items()}
        expected, found = answer(self.network, one), answer(self.network, padded)
        return expected is not None and not self._is_same(expected, found, behind=True)

    def _short_row(
        self, named: dict[str, Any], real: Tensor, pad: int
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]] | None:
        """Return the inputs of a row that is cut short, which of them have a value for each token, and padding."""
        kept = _kept(real, max(1, min(_LONGEST, real.shape[1] - _PADS)))
        if kept is None or not self._may_have(max(2, len(kept[1])) + _PADS, real):
            return None
        row, columns = kept
        columns = columns.repeat(2) if len(columns) == 1 else columns
        one, along = self._picked(named, row, columns)
        return one, along, self._pads(one, along, pad)

    def _of_full_row(self, named: dict[str, Any], real: Tensor, pad: int) -> How | None:
        """Compare a row with padding behind it with the same before it, for a network of rows of one length."""
        kept = _kept(real, real.shape[1] - _PADS)
        if kept is None or len(kept[1]) < 2:
            return None
        one, along = self._picked(named, *kept)
        size = len(kept[1])
        pads = self._pads(one, along, pad, real.shape[1] - size)
        behind = one | {name: _join(value, pads[name]) for name, value in along.items()}
        before = one | {name: _join(pads[name], value) for name, value in along.items()}
        comparable = True

        def is_same(expected: Tensor, found: Tensor | None) -> bool:
            nonlocal comparable
            comparable = found is not None and found.shape == expected.shape and expected.ndim == 3
            return found is not None and comparable and is_close(found[:, -size:], expected[:, :size])

        how = self._compare(behind, before, is_same)
        return how if comparable else None

    def _of_rows(self, named: dict[str, Any], real: Tensor, pad: int) -> How | None:
        """Compare rows as they are, since what belongs to them, such as an image, may need them whole."""
        if not self._may_have(real.shape[1] + _PADS, real):
            return None
        along = self._along(named)
        pads = self._pads(named, along, pad)
        padded = named | {name: _join(pads[name], value) for name, value in along.items()}
        return self._compare(named, padded, partial(self._is_same, real=real), anew=True)

    def _compare(
        self, one: dict[str, Any], padded: dict[str, Any], is_same: Callable[..., bool], *, anew: bool = False
    ) -> How:
        expected = answer(self.network, one)
        mask = padded.get("attention_mask")
        if expected is None or is_same(expected, answer(self.network, padded)):
            turned = self.reads_keys and mask is not None and "position_ids" in takes(self.network).named
            return "add" if turned else "as it is"
        if mask is not None and "position_ids" in takes(self.network).named:
            if anew:  # its rows may be padded as well
                expected = answer(self.network, {**one, "position_ids": positions_of(one["attention_mask"])})
            if expected is not None and is_same(
                expected, answer(self.network, {**padded, "position_ids": positions_of(mask)})
            ):
                return "add"
        return "refuse"

    def _along(self, named: dict[str, Any]) -> dict[str, Tensor]:
        """Return the inputs that have a value for each token."""
        tokens, labels = named[name_of_tokens(named) or ""], not _has_decoder(self.network)
        return {name: value for name, value in named.items() if is_along(name, value, tokens, labels=labels)}

    def _picked(self, named: dict[str, Any], row: int, columns: Tensor) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the inputs of some tokens of a row, and of these which have a value for each token."""
        rows = len(named[name_of_tokens(named) or ""])
        along = {name: value[row : row + 1, columns] for name, value in self._along(named).items()}
        return {name: _row(value, row, rows) for name, value in named.items()} | along, along

    def _pads(self, named: dict[str, Any], along: dict[str, Tensor], pad: int, count: int = _PADS) -> dict[str, Tensor]:
        """Return the values of padding."""
        fill = {name: -100 if "label" in name else 0 for name in along} | {name_of_tokens(named) or "": pad}
        return {name: v.new_full((len(v), count, *v.shape[2:]), fill[name]) for name, v in along.items()}

    def _may_have(self, length: int, tokens: Tensor) -> bool:
        """Whether a row may have so many tokens: beyond its last position a GPU stops the whole program."""
        config = getattr(original(self.network), "config", None)
        limits = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len")]
        known = [limit for limit in limits if isinstance(limit, int)]
        return tokens.device.type == "cpu" or length <= max([*known, tokens.shape[1]])

    def _is_same(
        self, expected: Tensor, found: Tensor | None, real: Tensor | None = None, *, behind: bool = False
    ) -> bool:
        if found is None or found.ndim != expected.ndim:
            return True  # no answer that could be compared
        longer = [axis for axis, size in enumerate(expected.shape) if found.shape[axis] == size + _PADS]
        if len(longer) == 1:
            found = found.narrow(longer[0], 0 if behind else _PADS, expected.shape[longer[0]])
        if found.shape != expected.shape:
            return True
        if real is not None and longer == [1] and expected.shape[:2] == real.shape:
            found, expected = found[real != 0], expected[real != 0]
        return is_close(found, expected)


def _has_decoder(network: nn.Module) -> bool:
    return any(name.startswith("decoder_input") for name in takes(network).named)


def _row(value: Any, row: int, rows: int) -> Any:
    return value[row : row + 1] if isinstance(value, Tensor) and value.ndim and len(value) == rows else value


def _kept(real: Tensor, longest: int) -> tuple[int, Tensor] | None:
    """Return the row with the most tokens, and where its first ones are; ``None`` if there are none."""
    row = int((real != 0).sum(-1).argmax())
    columns = real[row].nonzero().flatten()[: max(0, longest)]
    return (row, columns) if len(columns) else None


def _join(one: Tensor, other: Tensor) -> Tensor:
    return torch.cat([one, other], 1)
