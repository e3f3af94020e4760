"""What the plugin mounts into the api-server."""

from __future__ import annotations

from typing import Any

from airflow.exceptions import AirflowConfigException

from airflow_edge_agent.protocol import API_PREFIX
from airflow_edge_server import config, plainly

log = plainly.logger(__name__)


def build_apps() -> list[dict[str, Any]]:
    """Return the apps to mount: the agent API when it is enabled, else none.

    Never raises: a fault of ours must not keep the rest of the api-server from starting.
    """
    try:
        if not config.load().api_enabled:
            return []
        from airflow_edge_server.api.app import create_app  # noqa: PLC0415  not needed while the API is off

        return [{"app": create_app(), "url_prefix": API_PREFIX, "name": "Edge agents"}]
    except AirflowConfigException as error:
        log.error("The agent API is not served: %s", error)
    except Exception:
        log.exception("The agent API is not served: it could not be built.")
    return []
