"""A Dag whose task tells metrics of its own."""

# mypy: disable-error-code="untyped-decorator"
# (the type checker is told not to look into Airflow)

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag, task
from airflow.sdk.observability.stats import Stats


@dag(schedule=None, catchup=False)
def telling() -> None:
    @task(retries=0)
    def tell() -> None:
        Stats.incr("press.parts", 2, tags={"line": "3"})
        Stats.incr("press.parts", 3, tags={"line": "3"})
        Stats.gauge("press.level", 2.5)
        Stats.timing("press.weighing", timedelta(seconds=1.25))

    tell()


telling()
