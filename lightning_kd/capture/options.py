"""Inputs of a whole batch, such as a mode or a scale: numbers, words and switches that are not of one sample."""

import math
from collections.abc import Mapping
from enum import Enum
from inspect import Parameter, signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_kd.capture.columns import INDEX_KEYS, TARGET_KEYS, is_label, takes
from lightning_kd.capture.contents import MASK, inputs_of, is_list, tolerance
from lightning_kd.capture.networks import original

_OF_FORM = ("use_cache", "return_dict", "output_hidden_states", "output_attentions", "output_router_logits")
"""What changes the form of an answer of Hugging Face's models, not its numbers."""
_ROUNDING = 1e-6


def leaves_of_call(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return all inputs by the names that ``inputs_of`` gives them, also what is not of one sample.

    Example:
        >>> leaves_of_call((1, (2, "a")), {"size": {"height": 3}})
        {'0': 1, '1.0': 2, '1.1': 'a', 'size.height': 3}
    """
    found: dict[str, Any] = {}
    for name, value in ({str(i): value for i, value in enumerate(args)} | dict(kwargs)).items():
        inside = isinstance(value, Mapping) or (isinstance(value, tuple) and not is_list(value))
        if inside:
            more = leaves_of_call((), value) if isinstance(value, Mapping) else leaves_of_call(value, {})
            found |= {f"{name}.{key}": one for key, one in more.items()}
        else:
            found[name] = value
    return found


def is_answer_or_row(name: str) -> bool:
    """Whether an input is a target, a row or a mask, which are no options of a network, or changes but the form."""
    return name in (*TARGET_KEYS, *INDEX_KEYS, MASK, *_OF_FORM) or is_label(name)


def options_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs of a whole batch as plain data, by name.

    Example:
        >>> options_of((torch.zeros(2, 3),), {"mode": "f", "scale": torch.tensor(2.0), "word": ["a", "b"]})
        {'mode': 'f', 'scale': 2.0}
    """
    of_samples = inputs_of(args, kwargs)
    rows = next((len(value) for value in of_samples.values()), None)
    found = {}
    for name, value in leaves_of_call(args, kwargs).items():
        if name in of_samples or is_answer_or_row(name) or (isinstance(value, list) and len(value) == rows):
            continue
        plain = plain_option(value)
        if plain is not NO_OPTION:
            found[name] = plain
    return found


class _NoOption:
    """What is neither a number nor a word nor a list of them."""


NO_OPTION = _NoOption()


def plain_option(value: Any) -> Any:
    """Return a number, a word, a switch, ``None`` or a list of these as JSON holds it, else ``NO_OPTION``."""
    if isinstance(value, Tensor | np.generic | np.ndarray):
        value = value.item() if value.ndim == 0 else NO_OPTION
    if isinstance(value, Enum | torch.dtype | complex):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        parts = [plain_option(one) for one in value]
        return NO_OPTION if any(part is NO_OPTION for part in parts) else parts
    return NO_OPTION


def same_option(value: Any, plain: Any) -> bool:
    """Whether an input is what was written down of another one; a number may differ by the rounding of its format.

    Example:
        >>> same_option(torch.tensor(0.1), 0.1), same_option("f", "g"), same_option(None, 0.0)
        (True, False, False)
    """
    rounding = max(_ROUNDING, tolerance(value.dtype)) if isinstance(value, Tensor) else _ROUNDING
    return _alike(plain_option(value), plain, rounding)


def _alike(one: Any, other: Any, rounding: float) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_alike(a, b, rounding) for a, b in zip(one, other, strict=True))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other) <= rounding * abs(other)
    return bool(one == other)


def described_takes(network: nn.Module) -> dict[str, Any]:
    """Return as plain data which inputs a network takes, and what the options are that a call leaves out.

    Example:
        >>> class Net(nn.Module):
        ...     def forward(self, x, mode="f"): ...
        >>> described_takes(Net())
        {'named': ['mode', 'x'], 'positional': ['x', 'mode'], 'every': False, 'defaults': {'mode': 'f'}}
    """
    taken = takes(network)
    return {
        "named": sorted(taken.named),
        "positional": list(taken.positional),
        "every": taken.every,
        "defaults": _defaults(original(network)),
    }


def _defaults(network: nn.Module) -> dict[str, Any]:
    """Return the defaults of the inputs that are options; of a wrapper those in which all networks inside agree."""
    try:
        parameters = signature(network.forward).parameters.values()
    except (TypeError, ValueError):
        return {}
    given = {one.name: plain_option(one.default) for one in parameters if one.default is not Parameter.empty}
    found = {name: plain for name, plain in given.items() if plain is not NO_OPTION}
    base = getattr(network, "get_base_model", None)
    alike = list(getattr(network, "called_alike", None) or ([base()] if callable(base) else []))
    inner = [_defaults(original(one)) for one in alike if one is not network]
    for name, plain in (inner[0] if inner else {}).items():
        if all(name in one and one[name] == plain for one in inner):
            found.setdefault(name, plain)
    return found
