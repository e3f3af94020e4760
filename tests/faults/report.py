"""The matrix: fault by carrier, with what was lost, doubled or leaked, and how long recovery took."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from faults.run import Outcome

HEADERS = ("fault", "carrier", "database", "runs", "lost", "doubled", "log", "leaked", "other", "recovery s", "max s")


def matrix(outcomes: Sequence[Outcome]) -> str:
    """Return the table as Markdown, which is readable as plain text, too."""
    groups: dict[tuple[str, str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.fault, outcome.carrier, outcome.database), []).append(outcome)
    rows = [HEADERS, *(_row(key, group) for key, group in groups.items())]
    widths = [max(len(row[at]) for row in rows) for at in range(len(HEADERS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)


def _row(key: tuple[str, str, str], group: list[Outcome]) -> tuple[str, ...]:
    run = [outcome for outcome in group if outcome.skipped is None]
    if not run:
        return (*key, "0", *["skipped"] * 5, "", "")
    times = [outcome.recovered_seconds for outcome in run if outcome.recovered_seconds is not None]
    counts = [
        sum(len(getattr(outcome.findings, kind)) for outcome in run)
        for kind in ("lost", "doubled", "logs", "leaked", "other")
    ]
    return (
        *key,
        str(len(run)),
        *map(str, counts),
        f"{statistics.median(times):.1f}" if times else "",
        f"{max(times):.1f}" if times else "",
    )
