"""The figures for people, and what they are to be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

TARGETS = {
    "idle_cores_per_1000": 0.06,
    "memory_kb_per_connection": 60.0,
    "idle_dropped": 0,
    "steady_offered_p95": 0.5,
    "storm_back_seconds": 30.0,
    "sync_p95_ms": 20.0,
    "errors": 0,
}
"""At most."""

AT_LEAST = {"burst_jobs_per_second": 300.0}


def judge(figures: Mapping[str, Any]) -> list[str]:
    """Return which targets are missed, in words."""
    missed = [
        f"{key} is {figures[key]:.4g}, to be at most {most:g}"
        for key, most in TARGETS.items()
        if key in figures and figures[key] > most
    ]
    missed += [
        f"{key} is {figures[key]:.4g}, to be at least {least:g}"
        for key, least in AT_LEAST.items()
        if key in figures and figures[key] < least
    ]
    return missed


def ratios(figures: Mapping[str, Any], peer: Mapping[str, Any]) -> dict[str, float]:
    """Return how many times ours each figure of the peer's is."""
    both = [(key, value, peer.get(key)) for key, value in figures.items() if isinstance(value, int | float)]
    return {key: other / value for key, value, other in both if other and value}


def table(figures: Mapping[str, Any], peer: Mapping[str, Any] | None = None) -> str:
    """Lay the figures out, a line each; beside them the peer's, and the ratio."""
    rows = []
    compared = {} if peer is None else ratios(figures, peer)
    for key, value in figures.items():
        if not isinstance(value, int | float):
            continue
        target = f"<= {TARGETS[key]:g}" if key in TARGETS else f">= {AT_LEAST[key]:g}" if key in AT_LEAST else ""
        row = [key.replace("_", " "), f"{value:.4g}", target]
        if peer is not None:
            other = peer.get(key)
            row.append("" if other is None else f"{other:.4g}")
            row.append(f"{compared[key]:.1f}" if key in compared else "")
        rows.append(row)
    rows.insert(0, ["", "ours", "target", *(["edge3", "edge3 / ours"] if peer is not None else [])])
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    )
