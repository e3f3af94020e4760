"""What came of it, as tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from outage.partition import MEMBERS, Verdict


def table(verdicts: Sequence[Verdict]) -> str:
    """Return a row for each figure and a column for each side, as Markdown."""
    rows = [["", *(verdict.label for verdict in verdicts)], *(list(row) for row in _rows(verdicts))]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)


def _rows(verdicts: Sequence[Verdict]) -> list[tuple[str, ...]]:
    def row(label: str, *cells: object) -> tuple[str, ...]:
        return (label, *map(str, cells))

    return [
        row("tasks running when the link was cut", *(v.running_at_cut for v in verdicts)),
        row("finished while it was cut", *(v.finished_inside for v in verdicts)),
        row("killed while it was cut", *(v.killed_inside for v in verdicts)),
        row("given up by Airflow meanwhile", *(v.failed_inside for v in verdicts)),
        row("lost: the work of the first try", *(v.lost for v in verdicts)),
        row("doubled: the body ran again", *(v.doubled for v in verdicts)),
        row("  of these, both at the same time", *(v.overlapping for v in verdicts)),
        row("results in Airflow after the link's return (s)", *(_seconds(v.results_seconds) for v in verdicts)),
        row(f"logs whole, of {MEMBERS}", *(MEMBERS - v.log_holes for v in verdicts)),
        row("tasks at the end", *(", ".join(f"{n} {state}" for state, n in v.states.items()) for v in verdicts)),
        row("the run at the end", *(v.run_state for v in verdicts)),
        row("the worker in Airflow", *(v.worker for v in verdicts)),
        row("the worker's process", *(v.worker_end for v in verdicts)),
    ]


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f}"


def story(verdict: Verdict) -> str:
    """Return what happened when, like changes of several tasks in one line."""
    groups: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for change in verdict.changes:
        kind = " ".join(word for word in change["what"].split(",")[0].split() if not word.isdigit())
        groups[kind, change["before"], change["after"]].append(change["seconds"])
    lines = []
    for (kind, before, after), times in sorted(groups.items(), key=lambda group: min(group[1])):
        span = f"{min(times):+.0f} s" if max(times) - min(times) < 1 else f"{min(times):+.0f} to {max(times):+.0f} s"
        count = f"{len(times)} x " if len(times) > 1 else ""
        lines.append(f"  {span:18} {count}{kind}: {before or 'new'} → {after}")
    return "\n".join(lines)
