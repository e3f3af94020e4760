"""Dags that miss their deadlines."""

# mypy: disable-error-code="untyped-decorator"
# (the type checker is told not to look into Airflow)

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

from airflow.sdk import dag, get_current_context, task
from airflow.sdk.definitions.callback import SyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference


def deadline(path: str, **kwargs: str) -> DeadlineAlert:
    return DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(seconds=1),
        callback=SyncCallback(path, kwargs=kwargs),
    )


@task(retries=0)
def waits() -> None:
    folder = Path((get_current_context()["dag_run"].conf or {})["dir"])
    while not (folder / "go").exists():
        time.sleep(0.05)


@dag(schedule=None, catchup=False, deadline=deadline("deadline_calls.missed", word="hello"))
def late() -> None:
    waits()


@dag(schedule=None, catchup=False, deadline=deadline("deadline_calls.broken"))
def late_and_broken() -> None:
    waits()


late()
late_and_broken()
