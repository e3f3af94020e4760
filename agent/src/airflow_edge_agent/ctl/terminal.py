"""Words on the terminal: tables, colours where they are wanted, spans of time."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TextIO

from airflow_edge_agent.protocol.text import visible

_COLOURS = {"green": "32", "yellow": "33", "red": "31", "bold": "1", "dim": "2"}
_KEPT = "\n\t"
_SPAN = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?")


def out(text: str = "") -> None:
    """Print a line."""
    print(text, flush=True)  # noqa: T201 -- the program's output


def complain(text: str) -> None:
    """Print a message to standard error."""
    print(f"edgectl: {visible(text, keep=_KEPT)}", file=sys.stderr)  # noqa: T201 -- the program's output


def coloured(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Colour the text, on a terminal and unless NO_COLOR is set."""
    stream = stream or sys.stdout
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


def plain(text: str) -> str:
    """Return the text on one line: what others have written must not drive this terminal, or look like our words."""
    return visible(text, keep="\t")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out a table."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]]
    return [line.rstrip() for line in lines]


def span(seconds: float) -> str:
    """Write a span of time for people, two units of it."""
    left = int(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])


def seconds_of(text: str) -> float:
    """Read a span of time such as ``2h``, ``1h30m``, ``45s`` or ``90`` (seconds).

    :raises ValueError: it is none, or nothing.
    """
    found = _SPAN.fullmatch(text.strip())
    if found is None or not any(found.groups()):
        raise ValueError(f"{text!r} is no span of time; write 90s, 30m, 2h, 1h30m or 1d")
    total = sum(int(count or 0) * length for count, length in zip(found.groups(), (86_400, 3_600, 60, 1), strict=True))
    if total == 0:
        raise ValueError("a span of time must be longer than nothing")
    return float(total)


def size(count: int) -> str:
    """Write a number of bytes for people."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:  # noqa: PLR2004 -- the next unit
            return f"{amount:.0f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def since(moment: str | None) -> str:
    """Write how long ago something was."""
    if moment is None:
        return "unknown"
    try:
        then = datetime.fromisoformat(moment)
    except ValueError:
        return plain(moment)
    return f"{then.astimezone():%Y-%m-%d %H:%M} ({span(max(0.0, (datetime.now(UTC) - then).total_seconds()))} ago)"


def until(moment: str) -> str:
    """Write how long something still lasts."""
    then = datetime.fromisoformat(moment)
    left = span(max(0.0, (then - datetime.now(UTC)).total_seconds()))
    return f"until {then.astimezone():%Y-%m-%d %H:%M} ({left} left)"
