"""What runs while faults happen. Task bodies leave lines in files outside Airflow: they say what really happened."""

# mypy: disable-error-code="untyped-decorator"
# (the type checker is told not to look into Airflow)

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import dag, get_current_context, task

PIECE_SECONDS = 0.02
"""Between two lines of the slow task."""


def conf() -> dict[str, Any]:
    return get_current_context()["dag_run"].conf or {}


def note(what: str) -> None:
    ti = get_current_context()["ti"]
    line = f"{ti.task_id} {ti.map_index} {ti.try_number} {what} {os.getpid()}\n"
    # One write, so that lines of several processes do not mix.
    with (Path(conf()["dir"]) / "notes").open("ab", buffering=0) as file:
        file.write(line.encode())


@dag(schedule=None, catchup=False)
def work() -> None:
    @task(retries=0)
    def quick(number: int) -> int:
        note("began")
        print(f"quick {number}")
        note("ended")
        return number

    @task(retries=0)
    def slow() -> None:
        """Write lines until the test says that it has seen enough, and keep a copy of them."""
        note("began")
        go = Path(conf()["dir"]) / "go"
        with (Path(conf()["dir"]) / "lines").open("w") as copy:
            number = 0
            while not go.exists() or number < 50:
                line = f"line {number} grüße 世界 " + "x" * (number * 7 % 301)
                print(line)
                copy.write(line + "\n")
                copy.flush()
                number += 1
                time.sleep(PIECE_SECONDS)
        note("ended")

    @task(retries=0)
    def chatty() -> None:
        note("began")
        for number in range(1_500):
            print(f"chatty {number} {number * 7919 % 1000003:x} " + "y" * (number % 97))
        note("ended")

    @task(retries=1, retry_delay=timedelta(seconds=0))
    def second_try() -> None:
        note("began")
        if get_current_context()["ti"].try_number == 1:
            raise ValueError("the first try fails")
        note("ended")

    @task(retries=0)
    def doomed() -> None:
        note("began")
        raise ValueError("this task always fails")

    @task(retries=0)
    def late(number: int) -> int:
        note("began")
        note("ended")
        return number

    chatty()
    second_try()
    doomed()
    quick.expand(number=list(range(8)))
    slow() >> late.expand(number=[0, 1])


work()
