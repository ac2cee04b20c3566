"""Names of test cases that are the same in every process, as pytest-xdist asks."""

import re


def named(value: object) -> str:
    """Return ``str(value)`` without the address in memory that Python writes into it by default."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))
