"""What edge agents run in the demo: mapped tasks, XCom, a bash task, a slow one, and one that needs two tries."""

# mypy: disable-error-code="untyped-decorator"
# (the type checker is told not to look into Airflow)

from __future__ import annotations

import logging
import os
import sys
import time
from datetime import timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import dag, get_current_context, task

log = logging.getLogger(__name__)


@dag(schedule=None, catchup=False, tags=["demo"])
def edge_demo() -> None:
    """Read five sensors, add them up, and do a few other things beside."""

    @task
    def list_sensors() -> list[int]:
        log.info("Dag file: %s", __file__)
        log.info("Python environment: %s", sys.prefix)
        return [1, 2, 3, 4, 5]

    @task
    def read_sensor(number: int) -> int:
        value = number * number
        log.info("sensor %s reads %s", number, value)
        return value

    @task
    def add_up(values: list[int]) -> int:
        total = sum(values)
        log.info("%s sensors add up to %s", len(values), total)
        return total

    @task
    def slow() -> str:
        for line in range(1, 11):
            log.info("slow line %s of 10", line)
            time.sleep(0.5)
        return "10 lines, one every half second"

    @task(retries=1, retry_delay=timedelta(seconds=1))
    def flaky() -> str:
        context = get_current_context()
        if context["ti"].try_number == 1:
            raise RuntimeError("this fails once, on purpose")
        return f"worked at the second try, as process {os.getpid()}"

    shell = BashOperator(task_id="shell", bash_command='echo "$(uname -s) says hello from a shell"')

    add_up(read_sensor.expand(number=list_sensors()))
    slow()
    flaky()
    shell  # noqa: B018 - named for the reader; it belongs to the Dag by having been made


edge_demo()
