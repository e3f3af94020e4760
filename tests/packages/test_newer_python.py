"""The packages for a newer Python than the one that is built for by default, on the Debian that has it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.processes import Keeper
from harness.site import AirflowSite
from machine.image import TRIXIE, Images
from machine.nspawn import NspawnMachine
from packages.conftest import build, furnish, prebuilt, told
from packages.debian import DebianMachine
from packages.machine import PACKAGES, RUNTIMES

# The loader of the other root finds that root's libraries, and its Python finds its own modules beside itself.
_INTERPRETER = """\
#!/bin/sh
exec '{root}/usr/lib64/ld-linux-x86-64.so.2' --library-path '{root}/usr/lib/x86_64-linux-gnu' \\
    '{root}/usr/bin/python{python}' "$@"
"""


@pytest.fixture(scope="module")
def newer(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of packages, compiled by the Python of the distribution that they are for."""
    if ready := prebuilt("newer"):
        return ready
    folder = tmp_path_factory.mktemp("newer")
    interpreter = folder / "python"
    interpreter.write_text(_INTERPRETER.format(root=images.base(TRIXIE), python=TRIXIE.python))
    interpreter.chmod(0o755)
    said = subprocess.run([interpreter, "-V"], capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"Python {TRIXIE.python}.")
    build("--fast", "--python", TRIXIE.python, "--interpreter", str(interpreter), "--into", str(folder / "packages"))
    return folder / "packages"


@pytest.fixture
def trixie(
    request: pytest.FixtureRequest, images: Images, keeper: Keeper, newer: Path, tmp_path: Path
) -> Iterator[DebianMachine]:
    """Return a machine with that distribution, and the packages in a folder."""

    def prepare(top: Path) -> None:
        furnish(top)
        for path in newer.glob("*.deb"):
            (top / "srv" / path.name).write_bytes(path.read_bytes())

    with NspawnMachine(tmp_path / "m", keeper=keeper, layers=[images.base(TRIXIE)], prepare=prepare) as machine:
        machine.run("sh", "-c", "rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*")
        with told(request, machine):
            yield DebianMachine(machine)


@pytest.mark.sample
def test_a_newer_python_runs_the_demo(trixie: DebianMachine, site: AirflowSite) -> None:
    guest = trixie.guest
    tag = f"py{TRIXIE.python.replace('.', '')}"
    done = trixie.apt("install", *guest.run("sh", "-c", "ls /srv/*.deb").split())
    assert done.complaints == []
    assert all(f".{tag}" in trixie.version(package) for package in PACKAGES)
    assert trixie.verify() == ""
    # The distribution's own Python of that version, with the drop-ins for its systemd.
    assert guest.run(f"{RUNTIMES}/bin/python", "-V").startswith(f"Python {TRIXIE.python}.")
    assert "50-systemd-254.conf" in guest.show("edge-agent.service", "DropInPaths")
    # Read from the bytecode as it came; nothing had to be compiled.
    cached = "import airflow.sdk as m; print(m.__cached__)"
    assert f"cpython-{TRIXIE.python.replace('.', '')}.pyc" in guest.run(f"{RUNTIMES}/bin/python", "-I", "-c", cached)
    edge = trixie.enrol(site, "newer")
    run_id = site.api.trigger_dag("edge_demo")
    assert site.api.wait_for_run("edge_demo", run_id, seconds=240) == "success", edge.guest.messages("-n", "20")


def test_the_older_distribution_refuses_it(debian: DebianMachine, newer: Path) -> None:
    (package,) = newer.glob("airflow-edge-agent_*.deb")
    debian.guest.path("/srv/newer.deb").write_bytes(package.read_bytes())  # type: ignore[attr-defined]  # under nspawn
    refused = debian.guest.result("apt-get", "-y", "install", "/srv/newer.deb")
    assert refused.returncode != 0
    assert "python3 (>= 3.13~)" in refused.stdout + refused.stderr
