"""A real Airflow on each database, and a way to start real agents."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.agent import AgentProcess
from harness.postgres import Postgres
from harness.processes import Keeper
from harness.site import AirflowSite

ENVIRONMENT = Path(sys.prefix)
DAGS = Path(__file__).parent / "dags"

StartAgent = Callable[..., AgentProcess]

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def keeper() -> Iterator[Keeper]:
    with Keeper() as keeper:
        yield keeper


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def site(
    request: pytest.FixtureRequest, keeper: Keeper, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AirflowSite]:
    root = tmp_path_factory.mktemp(f"site-{request.param}")
    server: Postgres | None = request.getfixturevalue("postgres_server") if request.param == "postgresql" else None
    site = AirflowSite(
        root,
        keeper=keeper,
        environment=ENVIRONMENT,
        bundles={"probes": DAGS},
        database_url=server.create_database() if server else None,
    )
    with site:
        site.start()
        for dag_id in ("everything", "steps", "crowd"):
            site.api.wait_for_dag(dag_id)
        yield site


@pytest.fixture
def start_agent(site: AirflowSite, keeper: Keeper, tmp_path: Path) -> Iterator[StartAgent]:
    """Start agents of this test's site; they are stopped at its end."""
    agents: list[AgentProcess] = []

    def start(name: str | None = None, **options: Any) -> AgentProcess:
        # A name of its own each time: another test's agent may have been killed, and the server not know it yet.
        name = name or f"edge-{next(_numbers)}"
        agent = AgentProcess(
            tmp_path / name,
            keeper=keeper,
            environment=ENVIRONMENT,
            runtime=ENVIRONMENT,
            server_url=site.url,
            token=options.pop("token", None) or site.create_join_token(name),
            name=name,
            bundles={"probes": DAGS},
            **options,
        )
        agents.append(agent)
        agent.start()
        agent.wait_for_log("connected")
        return agent

    yield start
    for agent in agents:
        agent.close()
