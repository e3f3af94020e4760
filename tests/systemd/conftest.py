"""Machines with the agent installed, and one real Airflow on the host's loopback for all of them."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.postgres import Postgres
from harness.processes import Keeper
from harness.site import AirflowSite
from machine import nspawn
from machine.edge import DAGS, ERRANDS, Edge, MakeEdge, MakeMachine
from machine.image import BOOKWORM, SOURCE, Images
from machine.nspawn import NspawnMachine

ENVIRONMENT = Path(sys.prefix)
DAG_FOLDER = Path(__file__).parent / "dags"
CACHE = Path(os.environ.get("EDGE_TEST_MACHINES", SOURCE / ".machines"))

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def possible() -> None:
    """Skip, with the reason, where no machine can be booted. In CI that is a failure: see ``EDGE_TEST_MUST``."""
    reason = nspawn.missing()
    if reason is None:
        return
    if os.environ.get("EDGE_TEST_MUST"):
        pytest.fail(f"no machine can be booted here: {reason}")
    pytest.skip(f"no machine can be booted here: {reason}")


@pytest.fixture(scope="session")
def images(possible: None) -> Images:
    return Images(CACHE, progress=lambda what: print(what, file=sys.__stderr__))


@pytest.fixture(scope="session")
def keeper() -> Iterator[Keeper]:
    with Keeper() as keeper:
        yield keeper


@pytest.fixture(scope="session")
def site(keeper: Keeper, postgres_server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowSite]:
    site = AirflowSite(
        tmp_path_factory.mktemp("site"),
        keeper=keeper,
        environment=ENVIRONMENT,
        bundles={"errands": DAG_FOLDER},
        database_url=postgres_server.create_database(),
    )
    with site:
        site.start()
        site.api.wait_for_dag("hold")
        yield site


def furnish(top: Path) -> None:
    """Put the Dags on a machine, and a folder for what the tasks leave."""
    dags = top / DAGS.lstrip("/")
    dags.mkdir(parents=True)
    for path in DAG_FOLDER.glob("*.py"):
        (dags / path.name).write_text(path.read_text())
    (top / ERRANDS.lstrip("/")).mkdir()


@pytest.fixture(scope="module")
def make_machine(images: Images, keeper: Keeper, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeMachine]:
    """Boot machines; they are ended with the module."""
    machines: list[NspawnMachine] = []

    def make(layers: list[Path] | None = None, prepare: Callable[[Path], None] = furnish) -> NspawnMachine:
        folder = tmp_path_factory.mktemp("machine") / "m"
        machine = NspawnMachine(folder, keeper=keeper, layers=layers or images.agent(BOOKWORM), prepare=prepare)
        machines.append(machine)
        machine.boot()
        return machine

    yield make
    for machine in machines:
        machine.close()


@pytest.fixture(scope="module")
def make_edge(make_machine: MakeMachine, site: AirflowSite) -> MakeEdge:
    """Boot machines with an enrolled agent that has never been started."""

    def make(settings: dict[str, Any] | None = None, **options: Any) -> Edge:
        name = f"machine-{next(_numbers)}"
        edge = Edge(make_machine(**options), site, name=name, token=site.create_agent_token(name))
        edge.configure(settings)
        return edge

    return make


@pytest.fixture(scope="module")
def edge(make_edge: MakeEdge) -> Edge:
    """Return an agent that is enabled, started and connected; the tests of a module share it."""
    edge = make_edge()
    edge.enable()
    return edge


@pytest.fixture(autouse=True)
def _tell_what_happened(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a failure, show the end of the machine's journal."""
    failures = request.session.testsfailed
    yield
    if request.session.testsfailed > failures and "edge" in request.fixturenames:
        edge: Edge = request.getfixturevalue("edge")
        print("\n".join(edge.guest.run("journalctl", "-q", "-n", "80", "--no-pager", check=False).splitlines()))
