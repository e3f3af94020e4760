"""Our pages in Airflow's own UI: one bundle and two icons, built from ``server/ui`` and shipped in the package.

Airflow's UI loads the bundle into its own page. There is nothing secret in these files, so they are served to anybody;
what the pages show comes from the admin API, which asks who is there.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from airflow_edge_agent.protocol import API_PREFIX

PREFIX = f"{API_PREFIX}/ui"
"""Where the files are mounted below Airflow's base URL."""

ROUTE = "edge-agents"
"""The pages are below ``/plugin/`` and this."""

BUNDLE = "edge-agents.js"

_FOLDER = Path(__file__).parent / "static"
_TYPES = {".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
_A_YEAR = 365 * 24 * 3_600


class _File:
    """One file, held in memory: it cannot change while the server runs."""

    def __init__(self, path: Path) -> None:
        self.content = path.read_bytes()
        self.media_type = _TYPES[path.suffix]
        self.version = hashlib.sha256(self.content).hexdigest()[:16]


def _files() -> dict[str, _File]:
    return {path.name: _File(path) for path in sorted(_FOLDER.iterdir()) if path.suffix in _TYPES}


def react_app() -> dict[str, Any]:
    """Return the entry of ``react_apps``; its addresses are relative to Airflow's base URL."""
    files = _files()

    def address(name: str) -> str:
        return f"{PREFIX.lstrip('/')}/{name}?v={files[name].version}"

    return {
        "name": "Edge agents",
        "url_route": ROUTE,
        "destination": "nav",
        "nav_top_level": True,
        "bundle_url": address(BUNDLE),
        "icon": address("icon-light.svg"),
        "icon_dark_mode": address("icon-dark.svg"),
    }


class StaticFiles:
    """ASGI app that serves the files, with headers that let browsers keep them as long as they are right."""

    def __init__(self) -> None:
        self._files = _files()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            await self._answer(Request(scope))(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": ""})

    def _answer(self, request: Request) -> Response:
        root = request.scope.get("root_path", "")
        found = self._files.get(request.scope["path"].removeprefix(root).lstrip("/"))
        if found is None:
            return Response(status_code=404)
        if request.method not in {"GET", "HEAD"}:
            return Response(status_code=405, headers={"Allow": "GET, HEAD"})
        etag = f'"{found.version}"'
        headers = MutableHeaders({"ETag": etag, "X-Content-Type-Options": "nosniff"})
        # While api-servers of two versions run side by side, one is asked for the other's file: that must not stick.
        is_right = request.query_params.get("v") == found.version
        headers["Cache-Control"] = f"public, max-age={_A_YEAR}, immutable" if is_right else "no-cache"
        if request.headers.get("If-None-Match") == etag:
            return Response(status_code=304, headers=dict(headers))
        return Response(found.content, media_type=found.media_type, headers=dict(headers))
