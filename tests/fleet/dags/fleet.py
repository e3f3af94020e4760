"""The Dag with which the real scheduler feeds the fleet: many tasks that do nothing."""
# mypy: disable-error-code="untyped-decorator"
# (the type checker is told not to look into Airflow)

from __future__ import annotations

import os

from airflow.sdk import dag, task

TASKS = int(os.environ.get("FLEET_TASKS", "1"))


@dag(schedule=None, catchup=False, max_active_tasks=1_000_000)
def fleet_mapped() -> None:
    """Run as many tasks as the bench was told."""

    @task
    def nothing(number: int) -> None:
        del number

    nothing.expand(number=list(range(TASKS)))


fleet_mapped()
