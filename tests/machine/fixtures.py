"""Fixtures for tests on machines: the roots, one real Airflow on the host's loopback, and what becomes of failures."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.postgres import Postgres
from harness.processes import Keeper
from harness.site import AirflowSite
from machine.edge import DAGS, ERRANDS, Edge
from machine.image import SOURCE, Images

ENVIRONMENT = Path(sys.prefix)
DAG_FOLDER = Path(__file__).parent / "dags"
CACHE = Path(os.environ.get("EDGE_TEST_MACHINES", SOURCE / ".machines"))

_numbers = itertools.count(1)


def need(reason: str | None) -> None:
    """Skip if there is a reason not to boot a machine; fail where machines must boot, as in CI (``EDGE_TEST_MUST``)."""
    if reason is None:
        return
    if os.environ.get("EDGE_TEST_MUST"):
        pytest.fail(f"no machine can be booted here: {reason}")
    pytest.skip(f"no machine can be booted here: {reason}")


@pytest.fixture(scope="session")
def images() -> Images:
    """Return where roots are built and kept."""
    return Images(CACHE, progress=lambda what: print(what, file=sys.__stderr__))


@pytest.fixture(scope="session")
def keeper() -> Iterator[Keeper]:
    """Start processes that end with the tests."""
    with Keeper() as keeper:
        yield keeper


@pytest.fixture(scope="session")
def site(keeper: Keeper, postgres_server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowSite]:
    """Return a real Airflow that knows the errands."""
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


@pytest.fixture(autouse=True)
def tell_what_happened(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a failure, show the end of the machine's journal."""
    failures = request.session.testsfailed
    yield
    if request.session.testsfailed > failures and "edge" in request.fixturenames:
        edge: Edge = request.getfixturevalue("edge")
        print("\n".join(edge.guest.run("journalctl", "-q", "-n", "80", "--no-pager", check=False).splitlines()))
