"""A task that is at work during an upgrade, and imports something only after it."""

# mypy: disable-error-code="untyped-decorator"
# (the type checker is told not to look into Airflow)

from __future__ import annotations

import importlib
import os
import sys
import time
from pathlib import Path

from airflow.sdk import dag, get_current_context, task

LATE_MODULE = "airflow.providers.standard.operators.latest_only"


@dag(schedule=None, catchup=False)
def late() -> None:
    """Wait until told to go, then import a module and return where it and Python come from."""

    @task(retries=0)
    def late() -> dict[str, str]:
        folder = Path("/srv/errands", get_current_context()["dag_run"].conf["name"])
        with (folder / "notes").open("a") as notes:
            notes.write(f"began {get_current_context()['ti'].try_number} {os.getpid()}\n")
        while not (folder / "go").exists():
            time.sleep(0.05)
        if LATE_MODULE in sys.modules:
            raise RuntimeError(f"{LATE_MODULE} was there already, so nothing is shown")
        module = importlib.import_module(LATE_MODULE)
        with (folder / "notes").open("a") as notes:
            notes.write(f"ended {get_current_context()['ti'].try_number} {os.getpid()}\n")
        return {"prefix": os.path.realpath(sys.prefix), "module": str(module.__file__)}

    late()


late()
