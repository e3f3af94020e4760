"""Dags to measure with: they do next to nothing, so that what is measured is the cost of running a task at all."""
# mypy: disable-error-code="untyped-decorator"
# (the type checker is told not to look into Airflow)

from __future__ import annotations

import time
from pathlib import Path

from airflow.sdk import Variable, dag, get_current_context, task

MAPPED = 10
CROWD = 60
LOG_LINES = 50_000
LOG_LINE_CHARACTERS = 1_000
SLEEPING = 4
SLEEP_SECONDS = 20
CALLS = 300
MANY = 50


@dag(schedule=None, catchup=False)
def bench_single() -> None:
    """Run one trivial task."""

    @task
    def trivial() -> None:
        return

    trivial()


@dag(schedule=None, catchup=False)
def bench_mapped() -> None:
    """Run ten trivial tasks, two at a time: the agent's own default on two cores, so that nothing waits for a core."""

    @task(max_active_tis_per_dagrun=2)
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


@dag(schedule=None, catchup=False)
def bench_crowd() -> None:
    """Run sixty trivial tasks at once."""

    @task
    def trivial(number: int) -> int:
        return number

    trivial.expand(number=list(range(CROWD)))


@dag(schedule=None, catchup=False)
def bench_log() -> None:
    """Write about 50 MB of log, a line at a time."""

    @task
    def talkative() -> None:
        for number in range(LOG_LINES):
            print(f"{number:08d} ".ljust(LOG_LINE_CHARACTERS, "x"))

    talkative()


@dag(schedule=None, catchup=False)
def bench_ticks() -> None:
    """Say the time every half second."""

    @task
    def clock() -> None:
        for _ in range(40):
            print(f"tick {time.time():.3f}")
            time.sleep(0.5)

    clock()


def ways(way: str) -> None:
    """Define what the two ways to the Execution API are compared by; each way has a queue."""

    @dag(dag_id=f"bench_trivial_{way}", schedule=None, catchup=False)
    def alone() -> None:
        @task(queue=way)
        def trivial() -> None:
            return

        trivial()

    @dag(dag_id=f"bench_calls_{way}", schedule=None, catchup=False)
    def asking() -> None:
        @task(queue=way)
        def calls() -> list[float]:
            """Ask for a variable again and again; return how long each answer took, in milliseconds."""
            taken = []
            for _ in range(CALLS):
                began = time.perf_counter()
                Variable.get("bench")
                taken.append((time.perf_counter() - began) * 1_000)
            return taken

        calls()

    @dag(dag_id=f"bench_many_{way}", schedule=None, catchup=False)
    def many() -> None:
        @task(queue=way)
        def waits(number: int) -> int:
            folder = Path((get_current_context()["dag_run"].conf or {})["dir"])
            while not (folder / "go").exists():
                time.sleep(0.5)
            return number

        waits.expand(number=list(range(MANY)))

    alone()
    asking()
    many()


for name in ("relay", "direct"):
    ways(name)
bench_single()
bench_mapped()
bench_crowd()
bench_log()
bench_ticks()
bench_sleep()
