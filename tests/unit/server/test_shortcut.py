"""WebSockets of agents pass by what stands round other requests, and nothing else does."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_edge_agent.protocol import API_PREFIX, CHANNEL_PATH
from airflow_edge_server.api.shortcut import Shortcut

CHANNEL = f"{API_PREFIX}{CHANNEL_PATH}"


async def unused(*_: Any) -> Any:
    raise AssertionError


async def went(scope: dict[str, Any]) -> str:
    """Return which way it went, with the root path that was seen there."""
    ways: list[str] = []

    def way(name: str) -> Any:
        async def app(scope: dict[str, Any], _: object, __: object) -> None:
            ways.append(f"{name} below {scope.get('root_path', '')!r}")

        return app

    await Shortcut(way("app"), channel=way("channel"), mount=API_PREFIX)(scope, unused, unused)
    (found,) = ways
    return found


async def test_websockets_of_agents_take_the_short_way() -> None:
    assert await went({"type": "websocket", "path": CHANNEL}) == f"channel below {API_PREFIX!r}"


async def test_the_path_of_the_base_url_may_be_in_front_or_not() -> None:
    for path in (f"/airflow{CHANNEL}", CHANNEL):
        scope = {"type": "websocket", "path": path, "root_path": "/airflow"}
        assert await went(scope) == f"channel below {'/airflow' + API_PREFIX!r}"


@pytest.mark.parametrize(
    "scope",
    [
        {"type": "http", "path": CHANNEL},
        {"type": "lifespan"},
        {"type": "websocket", "path": f"{CHANNEL}/more"},
        {"type": "websocket", "path": f"/elsewhere{CHANNEL}"},
        {"type": "websocket", "path": CHANNEL_PATH},
    ],
)
async def test_all_else_goes_where_it_went_before(scope: dict[str, Any]) -> None:
    assert await went(dict(scope)) == "app below ''"
