"""A Dag that handles secrets and fails with them in its mouth."""

# mypy: disable-error-code="untyped-decorator"
# (the type checker is told not to look into Airflow)

from __future__ import annotations

import time
from pathlib import Path

from airflow.sdk import Connection, Variable, dag, get_current_context, task


@dag(schedule=None, catchup=False)
def canaries() -> None:
    @task
    def fail_with_secrets() -> None:
        folder = Path((get_current_context()["dag_run"].conf or {})["dir"])
        password = Connection.get("canary").password
        secret = Variable.get("canary_secret")
        print("has a password of", len(password), "and a secret of", len(secret), "characters")
        (folder / "holds").touch()
        while not (folder / "go").exists():
            time.sleep(0.05)
        raise RuntimeError(f"it did not work with {password} and {secret}")

    fail_with_secrets()


canaries()
