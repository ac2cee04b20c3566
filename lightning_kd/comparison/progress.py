"""What a comparison says while it works: a line for each run that has ended, and one for what runs now."""

import sys
import time
from typing import TextIO

_EVERY = 30.0
"""Seconds between two lines of what runs now, where a line cannot be written over."""
_WIDTH = 110


class Progress:
    """Writes lines to a terminal or a file.

    Args:
        stream: Where to; by default the standard output.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._over = self._stream.isatty()
        self._last = time.monotonic()
        self._shown = ""

    def line(self, text: str) -> None:
        """Write a line that stays."""
        self._clear()
        print(text, file=self._stream, flush=True)
        self._last = time.monotonic()

    def now(self, text: str) -> None:
        """Write what goes on now: over itself on a terminal, else twice a minute."""
        if self._over:
            if text != self._shown:
                self._clear()
                self._stream.write(text[:_WIDTH])
                self._stream.flush()
                self._shown = text
        elif time.monotonic() - self._last > _EVERY:
            self.line(text)

    def close(self) -> None:
        """End the line that is written over."""
        self._clear()

    def _clear(self) -> None:
        if self._over and self._shown:
            self._stream.write("\r" + " " * min(len(self._shown), _WIDTH) + "\r")
            self._stream.flush()
            self._shown = ""


def time_of(seconds: float) -> str:
    """Return a time in words.

    Example:
        >>> time_of(42), time_of(170), time_of(9000)
        ('42 s', '3 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
