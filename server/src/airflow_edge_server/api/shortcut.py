"""The short way for WebSockets: what a standing connection runs through stays in memory for as long as it stands."""

from __future__ import annotations

from collections.abc import Awaitable

from starlette.types import ASGIApp, Receive, Scope, Send

from airflow_edge_agent.protocol import CHANNEL_PATH


class Shortcut:
    """ASGI middleware that lets the WebSockets of agents pass by everything behind it.

    It is no coroutine itself, so that it does not stay with the connection either.

    :param app: gets all that is no such WebSocket.
    :param channel: gets those, with its mount as part of the root path.
    :param mount: where the agent API is, as seen from here.
    """

    def __init__(self, app: ASGIApp, *, channel: ASGIApp, mount: str = "") -> None:
        self._app = app
        self._channel = channel
        self._mount = mount

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Pass the request or connection on."""
        if scope["type"] == "websocket":
            root: str = scope.get("root_path", "")
            if scope["path"].removeprefix(root) == self._mount + CHANNEL_PATH:
                scope["root_path"] = root + self._mount
                return self._channel(scope, receive, send)
        return self._app(scope, receive, send)
