"""The matrix as a table."""

from __future__ import annotations

from collections.abc import Sequence

from survival.trial import Row

HEADERS = ("fault", "", "Airflow, job", "log", "taken over s", "time to truth s", "processes left", "remark")


def matrix(rows: Sequence[Row]) -> str:
    """Return the table as Markdown, which is readable as plain text, too."""
    cells = [HEADERS, *map(_cells, rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(HEADERS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    if row.skipped:
        return (row.fault, "not here", "", "", "", "", "", row.skipped)
    return (
        row.fault,
        "FAIL" if row.findings else "ok",
        row.outcome,
        row.log,
        _seconds(row.reattach_seconds),
        _seconds(row.truth_seconds),
        "" if row.left is None else str(row.left),
        row.remark,
    )


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
