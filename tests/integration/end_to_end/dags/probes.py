"""Dags for the end-to-end tests. Task bodies leave lines in a file outside Airflow: they say how often each ran."""

# mypy: disable-error-code="untyped-decorator"
# (the type checker is told not to look into Airflow)

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import PokeReturnValue, dag, get_current_context, task


def conf() -> dict[str, Any]:
    return get_current_context()["dag_run"].conf or {}


def note(what: str) -> None:
    ti = get_current_context()["ti"]
    with (Path(conf()["dir"]) / "notes").open("a") as file:
        file.write(f"{ti.task_id} {ti.map_index} {ti.try_number} {what} {os.getpid()}\n")


def wait_for_file(name: str) -> None:
    path = Path(conf()["dir"]) / name
    while not path.exists():
        time.sleep(0.05)


@dag(schedule=None, catchup=False)
def everything() -> None:
    @task
    def make() -> list[int]:
        note("ran")
        return [1, 2, 3]

    @task
    def double(number: int) -> int:
        note("ran")
        return number * 2

    @task
    def total(numbers: list[int]) -> int:
        note("ran")
        return sum(numbers)

    @task(retries=1, retry_delay=timedelta(seconds=0))
    def second_try() -> None:
        note("ran")
        if get_current_context()["ti"].try_number == 1:
            raise ValueError("the first try fails")

    @task.sensor(poke_interval=1, timeout=60, mode="reschedule")
    def reschedule() -> PokeReturnValue:
        # The same task instance comes back with the same try: a new dispatch each time.
        marks = Path(conf()["dir"]) / "pokes"
        with marks.open("a") as file:
            file.write("poke\n")
        pokes = len(marks.read_text().splitlines())
        print(f"poke number {pokes}")
        return PokeReturnValue(is_done=pokes >= 2)

    total(double.expand(number=make()))
    second_try()
    reschedule()
    BashOperator(task_id="shell", bash_command="echo from the shell; pwd; env | sort")


@dag(schedule=None, catchup=False)
def steps() -> None:
    @task(retries=0)
    def stepwise() -> str | None:
        """Write a line, wait for a file, write the rest: the test decides when, and whether a value is returned."""
        note("began")
        print("first line: grüße, 世界")
        wait_for_file("go")
        for number in range(200):
            print(f"line {number} " + "x" * (number % 97))
        print("last line")
        note("ended")
        return None if conf().get("no_value") else "done"

    stepwise()


@dag(schedule=None, catchup=False)
def crowd() -> None:
    @task
    def member(number: int) -> int:
        note("ran")
        wait_for_file("go")
        return number

    member.expand(number=list(range(6)))


everything()
steps()
crowd()
