"""What the plugin mounts into the api-server."""

from __future__ import annotations

from typing import Any

from airflow.exceptions import AirflowConfigException

from airflow_edge_agent.protocol import API_PREFIX
from airflow_edge_server import config, plainly

log = plainly.logger(__name__)


def build_apps() -> list[dict[str, Any]]:
    """Return the apps to mount: the agent API and the files of our pages when the API is enabled, else none.

    Never raises: a fault of ours must not keep the rest of the api-server from starting.
    """
    try:
        if not config.load().api_enabled:
            return []
        from airflow_edge_server import ui  # noqa: PLC0415  not needed while the API is off
        from airflow_edge_server.api.app import create_app  # noqa: PLC0415

        return [
            # Before the agent API, whose path begins alike and which lets nobody in without an agent's token.
            {"app": ui.StaticFiles(), "url_prefix": ui.PREFIX, "name": "Edge agents: pages"},
            {"app": create_app(), "url_prefix": API_PREFIX, "name": "Edge agents"},
        ]
    except AirflowConfigException as error:
        log.error("The agent API is not served: %s", error)
    except Exception:
        log.exception("The agent API is not served: it could not be built.")
    return []


def build_pages() -> list[dict[str, Any]]:
    """Return what Airflow's UI has to know of our pages: nothing while the agent API is off, for they live on it."""
    try:
        if not config.load().api_enabled:
            return []
        from airflow_edge_server import ui  # noqa: PLC0415  not needed while the API is off

        return [ui.react_app()]
    except AirflowConfigException:
        # Said already, by what would have served them.
        return []
    except Exception:
        log.exception("The pages of the edge agents are not shown.")
    return []
