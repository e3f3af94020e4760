"""Whether the software at both ends fits together."""

from __future__ import annotations

from collections.abc import Mapping


def version_warning(versions: Mapping[str, object], airflow_version: str) -> str | None:
    """Say that the Airflow of an agent's task runtime differs from the server's; ``None``: it does not, or who knows.

    No reason to refuse anything: a task either runs with it or says itself why not.
    """
    found = versions.get("airflow")
    if not isinstance(found, str) or found == airflow_version:
        return None
    degree = "minor version" if found.split(".")[:2] != airflow_version.split(".")[:2] else "patch"
    return f"its task runtime has Airflow {found}, the server {airflow_version}: another {degree}"
