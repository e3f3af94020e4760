"""The result of a bench: a table for people, JSON for programs."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psutil

from bench.ways import LABEL

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bench.figure import Figure

OWN = "airflow-edge-agent"
"""The column that others are compared with."""


@dataclass(frozen=True, slots=True)
class Column:
    """The figures of one arm on one database."""

    arm: str
    database: str
    figures: list[Figure]


def table(columns: Sequence[Column]) -> str:
    """Lay the figures out: a row each, a column for each arm and database, then the target and the ratios."""
    labels = {figure.key: figure for column in columns for figure in column.figures}
    header = ["", *(f"{column.arm}, {column.database}" for column in columns), "target", *_ratio_header(columns)]
    rows = [header]
    for key, model in labels.items():
        values = [_value(column, key) for column in columns]
        cells = ["" if value is None else f"{value:.{model.digits}f}" for value in values]
        rows.append([model.label, *cells, _target(model, columns), *_ratios(columns, key)])
    widths = [max(len(row[place]) for row in rows) for place in range(len(header))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    )


def _value(column: Column, key: str) -> float | None:
    return next((figure.value for figure in column.figures if figure.key == key), None)


def _target(model: Figure, columns: Sequence[Column]) -> str:
    if model.target is None:
        return ""
    own = [figure.met for column in columns for figure in column.figures if figure.key == model.key and is_own(column)]
    verdict = ("met" if all(own) else "MISSED") if own else ""
    return f"<= {model.target:g} {verdict}"


def is_own(column: Column) -> bool:
    """Whether the figures are our agent's."""
    return column.arm in {OWN, LABEL}


def _pairs(columns: Sequence[Column]) -> list[tuple[Column, Column]]:
    return [
        (own, other)
        for own in columns
        for other in columns
        if own.arm == OWN and not is_own(other) and own.database == other.database
    ]


def _ratio_header(columns: Sequence[Column]) -> list[str]:
    return [f"{other.arm} / ours, {own.database}" for own, other in _pairs(columns)]


def _ratios(columns: Sequence[Column], key: str) -> list[str]:
    cells = []
    for own, other in _pairs(columns):
        ours, theirs = _value(own, key), _value(other, key)
        cells.append(f"{theirs / ours:.1f}" if ours and theirs else "")
    return cells


def write_json(path: Path, columns: Sequence[Column]) -> None:
    """Write everything that was measured, and on what kind of machine."""
    document: dict[str, Any] = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "system": platform.platform(),
            "python": platform.python_version(),
            "cpu_count": os.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
        },
        "results": [
            {
                "arm": column.arm,
                "database": column.database,
                "figures": {figure.key: round(figure.value, 4) for figure in column.figures},
                "targets": {figure.key: figure.target for figure in column.figures if figure.target is not None},
            }
            for column in columns
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
