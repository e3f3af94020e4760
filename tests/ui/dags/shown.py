"""Dags whose jobs the pages show."""

# mypy: disable-error-code="untyped-decorator"
# (the type checker is told not to look into Airflow)

from __future__ import annotations

import time
from pathlib import Path

from airflow.sdk import dag, get_current_context, task


@dag(schedule=None, catchup=False)
def shown() -> None:
    @task(queue="plant")
    def counts() -> int:
        return sum(number * number for number in range(1_000_000))

    @task(queue="plant")
    def waits() -> None:
        """Until the test says go."""
        go = Path((get_current_context()["dag_run"].conf or {})["go"])
        while not go.exists():
            time.sleep(0.2)

    counts() >> waits()


@dag(schedule=None, catchup=False)
def lost() -> None:
    @task(queue="nowhere")
    def stuck() -> None:
        """No agent serves its queue."""

    stuck()


shown()
lost()
