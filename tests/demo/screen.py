"""What the demo prints: progress lines, a table, and why it failed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

_CODES = {"green": "32", "red": "31", "yellow": "33", "dim": "2", "bold": "1"}
_STATE_COLOURS = {"success": "green", "failed": "red", "upstream_failed": "red", "up_for_retry": "yellow"}


class Screen:
    """Prints to standard output, with colour only where that is welcome."""

    def __init__(self) -> None:
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self._began = time.monotonic()

    def paint(self, text: str, colour: str | None) -> str:
        """Return the text in a colour, or as it is."""
        return f"\x1b[{_CODES[colour]}m{text}\x1b[0m" if self._colour and colour else text

    def state(self, state: str, width: int = 0) -> str:
        """Return a task's state, padded, in its colour."""
        return self.paint(state.ljust(width), _STATE_COLOURS.get(state))

    def line(self, text: str = "") -> None:
        """Print a line."""
        print(text, flush=True)

    def progress(self, text: str) -> None:
        """Print a line with the seconds since the start."""
        elapsed = f"{time.monotonic() - self._began:6.1f} s"
        self.line(f"{self.paint(elapsed, 'dim')}  {text}")

    def title(self, text: str) -> None:
        """Print a heading."""
        self.line(self.paint(text, "bold"))

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], *, state_column: int) -> None:
        """Print rows in columns; the last column may be as wide as it likes."""
        widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header) - 1)]
        self.title("  ".join([*map(str.ljust, header, widths), header[-1]]))
        for row in rows:
            cells = [
                self.state(cell, width) if column == state_column else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=False))
            ]
            self.line("  ".join([*cells, row[-1]]))

    def failure(self, reason: str) -> None:
        """Print why the demo failed."""
        self.line(self.paint(f"FAILED: {reason}", "red"))
