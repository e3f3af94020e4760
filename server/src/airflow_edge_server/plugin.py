"""The Airflow plugin that mounts the agent API into the api-server, and our pages into Airflow's UI.

Every process of Airflow loads this module, tasks included, so it imports nothing but the base class, and from the
module that is already loaded in that process. The apps are built when the api-server asks for them.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or "airflow.sdk.plugins_manager" not in sys.modules:
    from airflow.plugins_manager import AirflowPlugin
else:
    # A task process has the Task SDK's manager loaded; core's would be a needless import there.
    from airflow.sdk.plugins_manager import AirflowPlugin


class _LazyApps:
    """Builds a list of what is mounted when it is first read in an api-server, and nowhere else.

    :param build: the name of the function of :mod:`airflow_edge_server.mounting` that does it.
    """

    def __init__(self, build: str) -> None:
        self._build = build
        self._apps: list[dict[str, Any]] | None = None

    def __get__(self, instance: object, owner: type[object]) -> list[dict[str, Any]]:
        # ``airflow plugins`` reads the attribute too, and must not open what a server opens.
        if "airflow.api_fastapi.main" not in sys.modules:
            return []
        if self._apps is None:
            from airflow_edge_server import mounting  # noqa: PLC0415  heavy: only in an api-server

            self._apps = getattr(mounting, self._build)()
        return self._apps


class EdgeAgentsPlugin(AirflowPlugin):  # type: ignore[misc]  # Airflow is not followed by mypy
    """Agent API of the api-server, and the pages that show it."""

    name = "edge_agents"
    fastapi_apps = _LazyApps("build_apps")
    fastapi_root_middlewares = _LazyApps("build_middlewares")
    react_apps = _LazyApps("build_pages")
