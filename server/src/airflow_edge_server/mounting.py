"""What the plugin mounts into the api-server."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

from airflow.exceptions import AirflowConfigException

from airflow_edge_agent.protocol import API_PREFIX
from airflow_edge_server import compat, config, plainly

if TYPE_CHECKING:
    from fastapi import FastAPI

log = plainly.logger(__name__)


def build_apps() -> list[dict[str, Any]]:
    """Return the apps to mount: the agent API and the files of our pages when the API is enabled, else none.

    Never raises: a fault of ours must not keep the rest of the api-server from starting.
    """
    try:
        if not config.load().api_enabled:
            return []
        from airflow_edge_server import ui  # noqa: PLC0415  not needed while the API is off

        return [
            # Before the agent API, whose path begins alike and which lets nobody in without an agent's token.
            {"app": ui.StaticFiles(), "url_prefix": ui.PREFIX, "name": "Edge agents: pages"},
            {"app": _agent_api(), "url_prefix": API_PREFIX, "name": "Edge agents"},
        ]
    except AirflowConfigException as error:
        log.error("The agent API is not served: %s", error)
    except Exception:
        log.exception("The agent API is not served: it could not be built.")
    return []


def build_middlewares() -> list[dict[str, Any]]:
    """Return what lets the WebSockets of agents pass by Airflow's own routes: nothing while the agent API is off."""
    # What is wrong was said already, by what would have served them.
    with contextlib.suppress(Exception):
        if config.load().api_enabled:
            _agent_api()
            return [{"middleware": pass_by, "name": "Edge agents: WebSockets"}]
    return []


def pass_by(app: Any) -> Any:
    """Wrap Airflow's app."""
    from airflow_edge_server.api.shortcut import Shortcut  # noqa: PLC0415  not needed while the API is off

    return Shortcut(app, channel=_agent_api().state.agents, mount=API_PREFIX)


@functools.cache
def _agent_api() -> FastAPI:
    from airflow_edge_server.api.app import create_app  # noqa: PLC0415  as above

    return create_app()


def build_pages() -> list[dict[str, Any]]:
    """Return what Airflow's UI has to know of our pages: nothing while the agent API is off, for they live on it."""
    try:
        if not config.load().api_enabled:
            return []
        from airflow_edge_server import ui  # noqa: PLC0415  not needed while the API is off

        page = ui.react_app()
        return [page | {"bundle_url": compat.bundle_url(page["bundle_url"])}]
    except AirflowConfigException:
        # Said already, by what would have served them.
        return []
    except Exception:
        log.exception("The pages of the edge agents are not shown.")
    return []
