"""The same with the .rpm, on a root whose packages RPM manages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.processes import Keeper
from harness.site import AirflowSite
from machine.edge import AGENT, RUNNER
from machine.image import BOOKWORM, Images
from machine.nspawn import NspawnMachine
from packages.conftest import Built, furnish, told
from packages.debian import RUNTIMES, DebianMachine
from packages.rpm import RpmMachine


@pytest.fixture
def machine(request: pytest.FixtureRequest, images: Images, keeper: Keeper, tmp_path: Path) -> Iterator[RpmMachine]:
    """Return a machine without any of our packages."""
    guest = NspawnMachine(tmp_path / "m", keeper=keeper, layers=[images.base(BOOKWORM)], prepare=furnish)
    with guest, told(request, guest):
        yield RpmMachine(guest)


def test_up_and_down_with_a_task_at_work_and_away(machine: RpmMachine, built: Built, site: AirflowSite) -> None:
    guest = machine.guest
    # For what does not ask the package manager.
    system = DebianMachine(guest)
    first, second = (sorted(folder.glob("*.rpm")) for folder in (built.first, built.second))

    done = machine.rpm("--install", *first)
    assert done.said == []
    print(f"rpm --install: {done.seconds:.1f} s")
    assert system.is_enabled() == "disabled"
    assert guest.show(AGENT, "ActiveState") == "inactive"
    assert guest.run("stat", "-c", "%a %U:%G", "/var/lib/edge-runner").strip() == "2770 edge-task:edge-agent"
    assert machine.query("--verify", "--nodeps", "airflow-edge-agent", "airflow-edge-runtime") == []

    guest.run("sh", "-c", "echo '# mine' >> /etc/airflow-edge-agent/agent.toml")
    edge = system.enrol(site, "rpm")
    first_runtime = system.current_runtime()
    held, late = edge.send("hold"), edge.send("late")
    held.wait_began()
    late.wait_began()
    pid, runner = edge.pid(), guest.main_pid(RUNNER)
    done = machine.rpm("--upgrade", *second)
    assert done.said == []
    print(f"rpm --upgrade under load: {done.seconds:.1f} s")
    assert edge.pid() != pid
    assert guest.result("kill", "-0", str(runner)).returncode == 0
    edge.wait_connected()
    late.go()
    assert late.wait() == "success"
    assert late.returned()["module"].startswith(f"{RUNTIMES}/{first_runtime}/")
    assert system.current_runtime() != first_runtime
    assert guest.read("/etc/airflow-edge-agent/agent.toml").endswith("# mine\n")
    assert system.is_enabled() == "enabled"

    assert machine.rpm("--upgrade", "--oldpackage", *first).said == []
    edge.wait_connected()
    assert system.current_runtime() == first_runtime
    held.wait_for_more_lines()
    held.check_unharmed()

    # Erased: ended, configuration and identity kept; RPM has no purge.
    assert machine.rpm("--erase", "airflow-edge-agent", "airflow-edge-runtime").said == [
        "warning: /etc/airflow-edge-agent/agent.toml saved as /etc/airflow-edge-agent/agent.toml.rpmsave"
    ]
    assert guest.run("pgrep", "-u", "edge-task,edge-agent", check=False) == ""
    assert guest.read("/etc/airflow-edge-agent/token").strip() == edge.token
    assert guest.run("find", "/usr/lib", RUNTIMES, "-path", "*airflow-edge*", check=False) == ""
