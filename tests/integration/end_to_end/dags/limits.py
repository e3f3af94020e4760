"""Tasks that ask for limits: one in words that the agent understands, one in others."""

# mypy: disable-error-code="untyped-decorator"
# (the type checker is told not to look into Airflow)

from __future__ import annotations

from airflow.sdk import dag, task


@dag(schedule=None, catchup=False)
def limits() -> None:
    @task(executor_config={"edge_agent": {"memory_max": "512M", "cpu_quota": "150%"}})
    def modest() -> None:
        print("within its limits")

    @task(executor_config={"edge_agent": {"memory_max": "lots"}})
    def immodest() -> None:
        print("must not run")

    modest()
    immodest()


limits()
