from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from integration.server_api.kit import Database, FakeAgent, MakeAgent, build_app, make_database, running


@pytest.fixture(params=["sqlite", "postgresql", "mysql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return make_database(request, tmp_path)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.dispose()


@pytest.fixture
async def client(database: Database) -> AsyncIterator[httpx.AsyncClient]:
    async with running(build_app(database)) as client:
        yield client


@pytest.fixture
def make_agent(database: Database, client: httpx.AsyncClient) -> MakeAgent:
    def make(name: str = "factory", **given: Any) -> FakeAgent:
        return FakeAgent(client, name, database.credential(name), **given)

    return make


@pytest.fixture
def agent(make_agent: MakeAgent) -> FakeAgent:
    return make_agent()


@pytest.fixture
def admin(client: httpx.AsyncClient) -> httpx.AsyncClient:
    """The client as somebody who may look, and change nothing."""
    client.headers["x-role"] = "viewer"
    return client
