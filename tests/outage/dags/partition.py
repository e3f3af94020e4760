"""A Dag whose tasks run until a file says that they may end. What they write outside of Airflow is the truth."""
# mypy: disable-error-code="untyped-decorator"
# (the type checker is told not to look into Airflow)

from __future__ import annotations

import os
import time
from pathlib import Path

from airflow.sdk import dag, get_current_context, task

MEMBERS = 8


def note(folder: Path, what: str, number: int, tried: int) -> None:
    """Append a line at once: several tasks write to that file."""
    line = f"{what} {number} {tried} {os.getpid()} {time.time():.3f}\n"
    descriptor = os.open(folder / "notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(descriptor, line.encode())
    os.close(descriptor)


@dag(schedule=None, catchup=False)
def partition() -> None:
    """Run eight tasks, each of which writes a line of log now and then until it may end."""

    @task(retries=1)
    def member(number: int) -> dict[str, int]:
        context = get_current_context()
        conf = context["dag_run"].conf or {}
        folder, pause_seconds = Path(conf["dir"]), float(conf["line_seconds"])
        note(folder, "began", number, context["ti"].try_number)
        lines, next_line_at = 0, time.monotonic()
        while not (folder / f"go-{number}").exists():
            if time.monotonic() >= next_line_at:
                print(f"line {lines}")
                lines += 1
                next_line_at += pause_seconds
            time.sleep(0.1)
        note(folder, "ended", number, context["ti"].try_number)
        return {"number": number, "lines": lines}

    member.expand(number=list(range(MEMBERS)))


partition()
