"""Which task runtime belongs to which Airflow."""

from __future__ import annotations

import re


def runtime_mismatch(task_sdk: str | None, airflow: str) -> str | None:
    """Say in one line that the runtime's Task SDK is another release's than the server's Airflow.

    Task SDK 1.x is released with Airflow 3.x. ``None``: they fit, or one of the versions says nothing.
    """
    sdk = _release(task_sdk or "")
    server = _release(airflow)
    if sdk is None or server is None or (sdk[0] + 2, sdk[1]) == server:
        return None
    return (
        f"the task runtime has Task SDK {task_sdk}, the server runs Airflow {airflow}: most tasks will work, but "
        f"install apache-airflow-task-sdk {server[0] - 2}.{server[1]}.* in the task runtime soon"
    )


def _release(version: str) -> tuple[int, int] | None:
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else None
