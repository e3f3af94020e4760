"""Whether the software at both ends fits together."""

from __future__ import annotations

from collections.abc import Mapping

from airflow_edge_agent.protocol.versions import runtime_mismatch


def version_warning(versions: Mapping[str, object], airflow_version: str) -> str | None:
    """Say that the Airflow of an agent's task runtime differs from the server's; ``None``: it does not, or who knows.

    :param versions: what the agent has told of itself.
    """
    sdk, airflow = (str(found) if (found := versions.get(name)) else None for name in ("task_sdk", "airflow"))
    return runtime_mismatch(task_sdk=sdk, airflow=airflow, server=airflow_version)
