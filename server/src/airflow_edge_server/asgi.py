"""The agent API as an application of its own: ``airflow_edge_server.asgi:app``, for any ASGI server.

Several processes of it may run beside each other and beside the api-server, on one metadata database. Airflow's own
pages and APIs are not in it, nor is the admin API, which needs Airflow's login; agents need nothing else.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

# Before anything of Airflow: it decides by this where secrets are looked for.
os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")

from airflow.utils.providers_configuration_loader import providers_configuration_loaded
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse

from airflow_edge_agent.protocol import API_PREFIX
from airflow_edge_server import compat
from airflow_edge_server.api.app import create_app, spare_collector
from airflow_edge_server.api.shortcut import Shortcut

HEALTH_PATH = "/health"
"""Answers 200 while agents can be served, else 503 with the reason."""


def create_standalone(api: FastAPI, *, root_path: str = "") -> FastAPI:
    """Put the agent API where the api-server would mount it.

    :param api: what :func:`~airflow_edge_server.api.app.create_app` makes.
    :param root_path: path of Airflow's base URL, which a proxy may leave in front of the paths.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # A mounted app's own lifespan is nobody else's business.
        async with api.router.lifespan_context(api):
            yield

    app = FastAPI(
        title="Edge agents",
        lifespan=lifespan,
        root_path=root_path,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )

    @app.get(HEALTH_PATH)
    async def health(_: Request) -> JSONResponse:
        problem = await api.state.problem()
        if problem is None:
            return JSONResponse({"status": "healthy"})
        return JSONResponse({"status": "unhealthy", "problem": problem}, status_code=503)

    app.mount(API_PREFIX, api)
    app.add_middleware(Shortcut, channel=api.state.agents, mount=API_PREFIX)
    return app


@providers_configuration_loaded  # type: ignore[untyped-decorator]  # Airflow is not followed by mypy
def build() -> FastAPI:
    """Build the application as Airflow is configured; ``[edge_agent] api_enabled`` does not matter to it.

    :raises airflow.exceptions.AirflowConfigException: when the configuration is not valid, or has no key to sign
        tokens with: one made up here would be known to no other process.
    """
    compat.check_signing_key()
    root_path = urlsplit(compat.base_url() or "").path
    # Logs are read where Airflow's UI is.
    return create_standalone(create_app(admin=False, on_start=spare_collector), root_path=root_path)


app: FastAPI = build()
