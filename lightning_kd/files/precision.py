"""Names of the formats that networks compute in."""

from typing import Literal

import torch

Precision = Literal["float32", "bfloat16", "float16"]


def dtype_of(precision: Precision | torch.dtype | None) -> torch.dtype | None:
    """Return the format of a name, a format as it is, and ``None`` as it is.

    Raises:
        ValueError: If it is no format of floating point.

    Example:
        >>> dtype_of("bfloat16")
        torch.bfloat16
    """
    found = getattr(torch, precision, precision) if isinstance(precision, str) else precision
    if found is None or (isinstance(found, torch.dtype) and found.is_floating_point):
        return found
    raise ValueError(f"Expected a format of floating point: float32, bfloat16 or float16, got {precision!r}.")
