"""What holds of both formats: installing, upgrading and downgrading under tasks at work, choices that are kept."""

from __future__ import annotations

import re

import pytest

from harness.receivers import StatsdReceiver
from harness.site import AirflowSite
from harness.waiting import wait_until
from machine.edge import AGENT, CREDENTIAL, RUNNER
from packages.conftest import Built
from packages.machine import AGENT_PACKAGE, PACKAGES, RUNTIME_PACKAGE, RUNTIMES, PackagedMachine

MOST_MEGABYTES = 8.0


@pytest.mark.sample
def test_a_new_installation_is_complete_quiet_and_off(system: PackagedMachine, built: Built) -> None:
    guest = system.guest
    done = system.install()
    assert done.complaints == []
    print(f"installed in {done.seconds:.1f} s")
    assert max(path.stat().st_size for path in built.second.glob(f"{AGENT_PACKAGE}*")) < MOST_MEGABYTES * 1e6
    # By name alone, so the newest release, and the runtime because it is recommended.
    for package in PACKAGES:
        assert "-2.py" in system.version(package)
    assert system.is_enabled() == "disabled"
    for unit in (AGENT, RUNNER, "edge-runner.socket"):
        assert guest.show(unit, "ActiveState") == "inactive"
    for user in ("edge-agent", "edge-task"):
        assert guest.run("getent", "passwd", user).strip().endswith("nologin")
    expected = {
        "/etc/airflow-edge-agent": "755 root:root",
        "/etc/airflow-edge-agent/agent.toml": "644 root:root",
        "/etc/default/edge-agent": "644 root:root",
        "/var/lib/edge-runner": "2770 edge-task:edge-agent",
        "/usr/bin/edge-agent": "755 root:root",
        "/usr/bin/edgectl": "755 root:root",
        "/usr/share/bash-completion/completions/edgectl": "644 root:root",
        "/usr/share/fish/vendor_completions.d/edgectl.fish": "644 root:root",
        f"{RUNTIMES}/current/bin/python": "777 root:root",
    }
    for path, mode in expected.items():
        assert guest.run("stat", "-c", "%a %U:%G", path).strip() == mode, path
    for page in ("man1/edgectl.1", "man8/edge-agent.8", "man8/edge-runner.8", "man5/agent.toml.5"):
        assert ".TH" in guest.run("zcat", f"/usr/share/man/{page}.gz")
    # Nothing of ours can be written by the users it runs as.
    for user in ("edge-agent", "edge-task"):
        writable = f"find /usr/lib/airflow-edge-* {RUNTIMES} ! -type l -writable | head -n 5"
        assert guest.run("sh", "-c", writable, user=user) == ""
    assert re.match(r"edge-agent \d", guest.run("edge-agent", "version"))
    assert guest.run("edgectl", "--help").startswith("usage: edgectl")
    assert system.verify() == ""
    units = f"/usr/lib/systemd/system/{AGENT} /usr/lib/systemd/system/{RUNNER}"
    verified = guest.result("sh", "-c", f"systemd-analyze verify {units} /usr/lib/systemd/system/*edge*.timer")
    complaints = [line for line in verified.stderr.splitlines() if "edge" in line and "man " not in line]
    assert complaints == []


def test_the_runtime_has_a_working_task_sdk_and_no_path_of_the_builder(system: PackagedMachine) -> None:
    guest = system.guest
    system.install_release(1)
    code = (
        "import sys, airflow.sdk, airflow.sdk.execution_time.supervisor as s, pydantic_core; "
        "print(sys.prefix, s.__cached__, s.supervise_task.__code__.co_filename)"
    )
    prefix, cached, compiled_for = guest.run(f"{RUNTIMES}/bin/python", "-I", "-c", code).split()[-3:]
    # Not 'current': a process must not change its version when the link does.
    assert prefix == f"{RUNTIMES}/{system.current_runtime()}"
    assert cached.startswith(f"{prefix}/lib/")
    assert compiled_for == source_of(cached)
    # Read from the bytecode, not compiled again: another user could not even write it.
    assert guest.run("sh", "-c", f"find {RUNTIMES} -newer {RUNTIMES}/current -name '*.pyc' | head -n 3") == ""


def source_of(cached: str) -> str:
    """Return the source file of a cached module."""
    return re.sub(r"__pycache__/(\w+)\.cpython-\d+\.pyc$", r"\1.py", cached)


@pytest.mark.parametrize("system", [pytest.param("debian", marks=pytest.mark.sample), "redhat"], indirect=True)
def test_up_and_down_with_tasks_at_work(system: PackagedMachine, site: AirflowSite) -> None:
    guest = system.guest
    system.install_release(1)
    edge = system.enrol(site, f"upgrade-{type(system).__name__}")
    first_runtime = system.current_runtime()
    held, late = edge.send("hold"), edge.send("late")
    held.wait_began()
    late.wait_began()
    pid, runner = edge.pid(), guest.main_pid(RUNNER)

    done = system.upgrade()
    print(f"upgraded under load in {done.seconds:.1f} s")
    assert done.complaints == []
    for package in PACKAGES:
        assert "-2.py" in system.version(package)
    second_runtime = system.current_runtime()
    assert second_runtime != first_runtime
    assert edge.pid() != pid, "the agent still runs the old version"
    assert guest.result("kill", "-0", str(runner)).returncode == 0, "the runner was ended"
    edge.wait_connected()
    held.wait_for_more_lines()

    # In use, so still there, whatever the package manager has deleted.
    guest.run("/usr/lib/airflow-edge-runtime/edge-runtime", "clean")
    assert sorted(system.runtimes()) == sorted([first_runtime, second_runtime])
    late.go()
    assert late.wait() == "success"
    found = late.returned()
    assert found["prefix"] == f"{RUNTIMES}/{first_runtime}"
    assert found["module"].startswith(f"{RUNTIMES}/{first_runtime}/")
    assert [note[:2] for note in late.notes()] == [["began", "1"], ["ended", "1"]]

    after = edge.send("late")
    after.wait_began()
    after.go()
    assert after.wait() == "success"
    assert after.returned()["prefix"] == f"{RUNTIMES}/{second_runtime}"

    # Down again, with the same task still at work.
    assert system.install_release(1).complaints == []
    edge.wait_connected()
    assert system.current_runtime() == first_runtime
    held.wait_for_more_lines()
    held.check_unharmed()

    # Nothing uses the second one any more.
    replaced = f"{RUNTIMES}/{second_runtime}/.replaced"

    def only_the_first() -> bool:
        guest.run("find", replaced, "-exec", "touch", "-d", "1 hour ago", "{}", ";", check=False)
        guest.run("systemctl", "start", "airflow-edge-runtime-clean.service")
        return system.runtimes() == [first_runtime]

    wait_until(only_the_first, seconds=60, what="the unused runtime to go", poll_seconds=1, seen=system.runtimes)


def test_the_administrators_choices_survive(system: PackagedMachine) -> None:
    guest = system.guest
    system.install_release(1)
    guest.run(
        "sh", "-c", "echo '# mine' >> /etc/airflow-edge-agent/agent.toml; echo '# too' >> /etc/default/edge-agent"
    )
    for choice in ("enable", "disable", "mask"):
        guest.run("systemctl", choice, AGENT)
        state = system.is_enabled()
        for release in (2, 1):
            assert system.install_release(release).complaints == []
            assert system.is_enabled() == state
            assert guest.show(AGENT, "ActiveState") == "inactive", "an upgrade has started it"
    assert guest.read("/etc/airflow-edge-agent/agent.toml").endswith("# mine\n")
    assert guest.read("/etc/default/edge-agent").endswith("# too\n")


def test_a_removal_waits_and_ends_and_what_it_keeps_is_enough_to_go_on(
    system: PackagedMachine, site: AirflowSite
) -> None:
    guest = system.guest
    system.install_release(2)
    edge = system.enrol(site, f"removal-{type(system).__name__}")
    guest.run("sh", "-c", "echo REMOVE_DRAIN_SECONDS=8 >> /etc/default/edge-agent")
    held = edge.send("hold")
    held.wait_began()

    done = system.remove(*PACKAGES)
    ours = [line for line in done.complaints if line.startswith(PACKAGES)]
    assert ours == [
        f"{AGENT_PACKAGE}: waiting up to 8 s for running tasks (REMOVE_DRAIN_SECONDS in /etc/default/edge-agent)",
        f"{AGENT_PACKAGE}: ending the tasks that still run",
    ]
    assert held.wait() == "failed"
    assert guest.run("pgrep", "-u", "edge-task,edge-agent", check=False) == ""
    # No runtime in use any more, so none is left.
    assert guest.result("test", "-e", RUNTIMES).returncode == 1
    assert guest.read(CREDENTIAL).startswith("eac_")
    system.install_release(2)
    guest.run("systemctl", "start", AGENT)
    edge.wait_connected()
    again = edge.send("hold")
    again.wait_began()
    again.check_unharmed()


def test_an_idle_agent_is_removed_at_once_and_quietly(system: PackagedMachine, site: AirflowSite) -> None:
    system.install_release(2)
    system.enrol(site, f"idle-{type(system).__name__}")
    done = system.remove(*PACKAGES)
    assert [line for line in done.complaints if line.startswith(PACKAGES)] == []
    assert system.guest.run("pgrep", "-u", "edge-task,edge-agent", check=False) == ""
    print(f"removed in {done.seconds:.1f} s")


def test_enrolled_it_runs_the_demo(system: PackagedMachine, site: AirflowSite, receiver: StatsdReceiver) -> None:
    system.install()
    system.guest.write("/etc/airflow-edge-agent/conf.d/60-metrics.toml", "[metrics]\nrelay_statsd = true\n")
    edge = system.enrol(site, f"demo-{type(system).__name__}")
    run_id = site.api.trigger_dag("edge_demo")
    state = site.api.wait_for_run("edge_demo", run_id, seconds=180)
    lines = [line.event for line in site.api.log(site.api.task_instance("edge_demo", run_id, "list_sensors"))]
    assert state == "success", lines
    assert any(f"{RUNTIMES}/{system.current_runtime()}" in line for line in lines), lines
    wait_until(
        lambda: receiver.last("airflow.ti.finish", task_id="list_sensors", state="success", agent=edge.name),
        seconds=60,
        what="what the task told to StatsD",
        seen=lambda: sorted({one.name for one in receiver.told if ("agent", edge.name) in one.tags}),
    )
    system.guest.run("edgectl", "maintenance", "on", "--comment", "new disk")
    wait_until(
        lambda: edge.edgectl("status")["state"] == "maintenance mode",
        seconds=30,
        what="maintenance",
        seen=lambda: edge.edgectl("status"),
    )
    assert system.version(RUNTIME_PACKAGE)
