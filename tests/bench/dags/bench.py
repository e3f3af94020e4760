"""Dags to measure with: they do next to nothing, so that what is measured is the cost of running a task at all."""
# mypy: disable-error-code="untyped-decorator"
# (the type checker is told not to look into Airflow)

from __future__ import annotations

import time

from airflow.sdk import dag, task

MAPPED = 10
SLEEPING = 4
SLEEP_SECONDS = 20


@dag(schedule=None, catchup=False)
def bench_single() -> None:
    """Run one trivial task."""

    @task
    def trivial() -> None:
        return

    trivial()


@dag(schedule=None, catchup=False)
def bench_mapped() -> None:
    """Run ten trivial tasks at once."""

    @task
    def trivial(number: int) -> int:
        return number

    trivial.expand(number=list(range(MAPPED)))


@dag(schedule=None, catchup=False)
def bench_sleep() -> None:
    """Run four tasks that only are there."""

    @task
    def sleeping(number: int) -> int:
        time.sleep(SLEEP_SECONDS)
        return number

    sleeping.expand(number=list(range(SLEEPING)))


bench_single()
bench_mapped()
bench_sleep()
