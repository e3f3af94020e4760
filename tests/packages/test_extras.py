"""Further providers for the packaged runtime, and the bundle, on machines that know no repository and no index."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgepack import bundle
from harness.processes import Keeper
from harness.signing import gnupg_home
from harness.wheels import wheel
from machine.image import BOOKWORM, SOURCE, Images
from machine.nspawn import NspawnMachine
from packages.conftest import KEY, Built, furnish, told
from packages.debian import DebianMachine
from packages.machine import RUNTIMES

EXTRAS = "/etc/airflow-edge-runtime/extras.txt"


@pytest.fixture
def alone(
    request: pytest.FixtureRequest, images: Images, keeper: Keeper, built: Built, tmp_path: Path
) -> Iterator[DebianMachine]:
    """Return a machine with nothing but a bundle of each release, unpacked, and two wheels."""

    def prepare(top: Path) -> None:
        furnish(top)
        with gnupg_home(tmp_path / "gnupg", KEY):
            for number, packages in (("1", built.first), ("2", built.second)):
                file = tmp_path / f"{number}-bundle.tar"
                bundle.make(packages, file, KEY, installer=SOURCE / "packaging/bundle/install.sh", epoch=0)
                with tarfile.open(file) as archive:
                    archive.extractall(top / "srv", filter="data")
                file.unlink()
        wheel(top / "srv/wheels", "site-provider", "1.0", "apache-airflow-task-sdk>=1.1", "site-helper")
        wheel(top / "srv/wheels", "site-helper", "0.1")
        wheel(top / "srv/wheels", "of-another-time", "1.0", "apache-airflow-task-sdk<1")

    with NspawnMachine(tmp_path / "m", keeper=keeper, layers=[images.base(BOOKWORM)], prepare=prepare) as machine:
        machine.run("rm", "-rf", "/etc/apt/sources.list", "/etc/apt/sources.list.d")
        with told(request, machine):
            yield DebianMachine(machine)


def test_a_bundle_installs_and_what_was_added_survives_upgrades(alone: DebianMachine) -> None:
    guest = alone.guest
    guest.run("/srv/1-bundle/install.sh", seconds=300)
    assert "-1.py" in alone.version()
    assert alone.is_enabled() == "disabled"

    offline = ("--no-index", "--find-links", "/srv/wheels")
    guest.run("edgectl", "runtime", "install", *offline, "site-provider", seconds=120)
    seen = "import site_provider, site_helper; print(site_provider.VERSION, site_helper.VERSION)"
    assert guest.run(f"{RUNTIMES}/bin/python", "-I", "-c", seen, user="edge-task").split() == ["1.0", "0.1"]
    writable = f"find -L {RUNTIMES}/current/extras -writable | head -n 3"
    assert guest.run("sh", "-c", writable, user="edge-task") == ""

    # What would change the Task SDK, and who may not, is refused; and nothing has changed.
    for name in ("apache-airflow-task-sdk==1.2.0", "of-another-time"):
        refused = guest.result("edgectl", "runtime", "install", *offline, name, seconds=120)
        assert (refused.returncode, "apache-airflow-task-sdk" in refused.stderr) == (3, True), refused.stderr
        assert "Traceback" not in refused.stderr
    assert guest.result("edgectl", "runtime", "remove", "site-provider", user="edge-task").returncode == 3
    assert "site-provider  1.0" in guest.run("edgectl", "runtime", "list")

    # Its wheels are kept: the upgrade needs neither an index nor the folder that they came from.
    shutil.rmtree(guest.path("/srv/wheels"))  # type: ignore[attr-defined]  # a machine under systemd-nspawn
    before = alone.current_runtime()
    guest.run("/srv/2-bundle/install.sh", seconds=300)
    assert alone.current_runtime() != before
    assert guest.run(f"{RUNTIMES}/bin/python", "-I", "-c", seen, user="edge-task").split() == ["1.0", "0.1"]

    guest.run("edgectl", "runtime", "remove", "site-provider", seconds=120)
    assert guest.result(f"{RUNTIMES}/bin/python", "-I", "-c", seen).returncode != 0
    assert "site-provider" not in guest.read(EXTRAS)


def test_without_a_runtime_the_runner_says_so(alone: DebianMachine) -> None:
    guest = alone.guest
    guest.run("/srv/1-bundle/install.sh", "--agent-only", seconds=300)
    assert "airflow-edge-runtime is not installed" in guest.result("edgectl", "runtime", "list").stderr
    guest.run("systemctl", "start", "edge-runner.socket")
    done = guest.result("/usr/bin/edge-runner", "--help")
    assert done.returncode == 0, done.stderr
    assert "no task runtime there; install airflow-edge-runtime" in done.stderr
