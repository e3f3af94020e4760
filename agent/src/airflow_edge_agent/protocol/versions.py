"""Whether the software at both ends fits together; said the same way wherever it is said."""

from __future__ import annotations

import re


def runtime_mismatch(*, task_sdk: str | None, airflow: str | None, server: str) -> str | None:
    """Say in one line that a task runtime is another release's than the server's Airflow.

    No reason to refuse anything: a task either runs with it or says itself why not.

    :param task_sdk: the runtime's Task SDK; 1.x is released with Airflow 3.x.
    :param airflow: the Airflow of the runtime.
    :param server: the server's Airflow.
    :return: ``None``: they fit, or too little is known.
    """
    theirs = _series(server)
    if airflow is not None:
        ours, what = _series(airflow), f"Airflow {airflow}"
    else:
        sdk = _series(task_sdk or "")
        ours, what = sdk and (sdk[0] + 2, sdk[1]), f"Task SDK {task_sdk}"
    if ours is None or theirs is None:
        return None
    if ours != theirs:
        return (
            f"the task runtime has {what}, the server Airflow {server}: another minor version; most tasks will work, "
            f"but install apache-airflow-task-sdk {theirs[0] - 2}.{theirs[1]}.* in the task runtime soon"
        )
    if airflow is not None and airflow != server:
        return f"the task runtime has {what}, the server {server}: another patch"
    return None


def _series(version: str) -> tuple[int, int] | None:
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else None
