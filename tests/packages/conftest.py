"""Packages built from this tree in two releases, a repository of them, and Debian machines that know only that one."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgepack import repository
from harness.postgres import Postgres
from harness.processes import Keeper
from harness.receivers import StatsdReceiver
from harness.signing import gnupg_home
from harness.site import AirflowSite
from machine import nspawn
from machine.fixtures import CACHE, ENVIRONMENT, keeper, need
from machine.fixtures import DAG_FOLDER as ERRAND_DAGS
from machine.image import BOOKWORM, SOURCE, Images
from machine.nspawn import NspawnMachine
from packages.debian import DebianMachine
from packages.machine import PackagedMachine
from packages.redhat import NEEDED, RpmMachine

__all__ = ["keeper"]

HERE = Path(__file__).parent
KEY = "test@airflow-edge-agent.invalid"


@dataclass(frozen=True)
class Built:
    """Two releases of all packages, which differ in nothing but their number."""

    first: Path
    second: Path


@pytest.fixture(scope="session", autouse=True)
def possible() -> None:
    need(nspawn.missing())
    for tool in ("apt-ftparchive", "createrepo_c", "gpg"):
        need(None if shutil.which(tool) else f"{tool} is not installed (apt-utils, createrepo-c, gpg)")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build both releases, at the same time."""
    top = tmp_path_factory.mktemp("packages")

    def release(number: str) -> Path:
        if ready := prebuilt(number):
            return ready
        build("--fast", "--release", number, "--into", str(top / number))
        return top / number

    with ThreadPoolExecutor() as pool:
        return Built(*pool.map(release, ("1", "2")))


def prebuilt(name: str) -> Path | None:
    """Return the folder of packages that have been built before, if ``EDGE_TEST_PACKAGES`` names where they are."""
    top = os.environ.get("EDGE_TEST_PACKAGES")
    folder = Path(top, name) if top else None
    return folder if folder and folder.is_dir() else None


def build(*arguments: str, source: Path = SOURCE, umask: int = -1) -> None:
    """Run the build as ``make packages`` does.

    :param source: the tree to build.
    """
    search = os.pathsep.join(filter(None, [str(Path(os.environ.get("UV", "uv")).parent), os.environ["PATH"]]))
    command = [sys.executable, "-m", "edgepack", "packages", *arguments]
    modules = os.pathsep.join(str(source / folder) for folder in ("packaging/build", "agent/src"))
    env = os.environ | {"PYTHONPATH": modules, "PATH": search}
    done = subprocess.run(command, env=env, umask=umask, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def repository_layer(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder for the top of a machine: both releases in repositories signed with a throw-away key."""
    layer = tmp_path_factory.mktemp("layer")
    layer.chmod(0o755)
    packages = tmp_path_factory.mktemp("all")
    for path in (*built.first.iterdir(), *built.second.iterdir()):
        shutil.copyfile(path, packages / path.name)
    with gnupg_home(tmp_path_factory.mktemp("keys") / "gnupg", KEY):
        repository.make(packages, layer / "srv/repository", KEY)
        yield layer


@pytest.fixture(scope="session")
def images() -> Images:
    """Return where roots are built and kept."""
    return Images(CACHE, progress=lambda what: print(what, file=sys.__stderr__))


@pytest.fixture(scope="session")
def receiver() -> Iterator[StatsdReceiver]:
    """Return where the site's metrics go."""
    with StatsdReceiver() as receiver:
        yield receiver


@pytest.fixture(scope="session")
def site(
    keeper: Keeper,
    postgres_server: Postgres,
    receiver: StatsdReceiver,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[AirflowSite]:
    """Return a real Airflow with the demo's Dag, the errands and one that imports late."""
    site = AirflowSite(
        tmp_path_factory.mktemp("site"),
        keeper=keeper,
        environment=ENVIRONMENT,
        bundles={"errands": ERRAND_DAGS, "late": HERE / "dags", "demo": SOURCE / "tests/demo/dags"},
        database_url=postgres_server.create_database(),
        settings={
            "AIRFLOW__METRICS__STATSD_ON": "True",
            "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
            "AIRFLOW__METRICS__STATSD_PORT": str(receiver.port),
            "AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED": "True",
            "AIRFLOW__EDGE_AGENT__RELAY_TASK_METRICS": "True",
        },
    )
    with site:
        site.start()
        for dag_id in ("hold", "late", "edge_demo"):
            site.api.wait_for_dag(dag_id)
        yield site


def furnish(top: Path) -> None:
    """Put the Dags on a machine, and a folder for what the tasks leave."""
    for name, source in {"dags": ERRAND_DAGS, "late": HERE / "dags", "demo": SOURCE / "tests/demo/dags"}.items():
        (top / "srv" / name).mkdir(parents=True)
        for path in source.glob("*.py"):
            (top / "srv" / name / path.name).write_text(path.read_text())
    (top / "srv/errands").mkdir()


@contextlib.contextmanager
def told(request: pytest.FixtureRequest, machine: NspawnMachine) -> Iterator[None]:
    """After a failure, show the end of the machine's journal."""
    failures = request.session.testsfailed
    yield
    if request.session.testsfailed > failures:
        print(machine.run("journalctl", "-q", "-n", "60", "--no-pager", check=False))


@pytest.fixture
def debian(
    request: pytest.FixtureRequest, images: Images, keeper: Keeper, repository_layer: Path, tmp_path: Path
) -> Iterator[DebianMachine]:
    """Return a fresh Debian to which the repository has been added, as its README says."""
    layers = [repository_layer, images.base(BOOKWORM)]
    with NspawnMachine(tmp_path / "m", keeper=keeper, layers=layers, prepare=furnish) as machine:
        debian = DebianMachine(machine)
        debian.add_repository()
        with told(request, machine):
            yield debian


@pytest.fixture
def redhat(
    request: pytest.FixtureRequest, images: Images, keeper: Keeper, repository_layer: Path, tmp_path: Path
) -> Iterator[RpmMachine]:
    """Return a machine on which RPM manages packages, with the repository added as its README says."""
    layers = [repository_layer, images.base(BOOKWORM, also=NEEDED)]
    with NspawnMachine(tmp_path / "m", keeper=keeper, layers=layers, prepare=furnish) as machine:
        redhat = RpmMachine(machine)
        redhat.add_repository()
        with told(request, machine):
            yield redhat


@pytest.fixture(params=["debian", "redhat"])
def system(request: pytest.FixtureRequest) -> PackagedMachine:
    """Return a machine of either kind."""
    machine = request.getfixturevalue(request.param)
    assert isinstance(machine, PackagedMachine)
    return machine
