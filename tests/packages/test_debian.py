"""Installing, upgrading, removing: what an administrator of Debian expects of any package."""

from __future__ import annotations

import re

import pytest

from harness.site import AirflowSite
from harness.waiting import wait_until
from machine.edge import AGENT, RUNNER
from packages.conftest import Built
from packages.debian import AGENT_PACKAGE, RUNTIME_PACKAGE, RUNTIMES, DebianMachine

MOST_MEGABYTES = 8.0


@pytest.mark.sample
def test_a_new_installation_is_complete_quiet_and_off(debian: DebianMachine, built: Built) -> None:
    guest = debian.guest
    done = debian.apt("install", AGENT_PACKAGE)
    assert done.complaints == []
    print(f"installed in {done.seconds:.1f} s")
    assert max(path.stat().st_size for path in built.second.glob(f"{AGENT_PACKAGE}*")) < MOST_MEGABYTES * 1e6
    # By name alone, so the newest release, and the runtime because it is recommended.
    assert debian.version() == debian.versions()[0]
    assert debian.version(RUNTIME_PACKAGE) == debian.versions(RUNTIME_PACKAGE)[0]
    assert debian.is_enabled() == "disabled"
    for unit in (AGENT, RUNNER, "edge-runner.socket"):
        assert guest.show(unit, "ActiveState") == "inactive"
    for user in ("edge-agent", "edge-task"):
        assert guest.run("getent", "passwd", user).strip().endswith("nologin")
    expected = {
        "/etc/airflow-edge-agent": "755 root:root",
        "/etc/airflow-edge-agent/agent.toml": "644 root:root",
        "/var/lib/edge-runner": "2770 edge-task:edge-agent",
        "/usr/bin/edge-agent": "755 root:root",
        "/usr/bin/edgectl": "755 root:root",
        f"{RUNTIMES}/current/bin/python": "777 root:root",
    }
    for path, mode in expected.items():
        assert guest.run("stat", "-c", "%a %U:%G", path).strip() == mode, path
    # Nothing of ours can be written by the users it runs as.
    for user in ("edge-agent", "edge-task"):
        writable = f"find /usr/lib/airflow-edge-* {RUNTIMES} ! -type l -writable | head -n 5"
        assert guest.run("sh", "-c", writable, user=user) == ""
    assert re.match(r"edge-agent \d", guest.run("edge-agent", "version"))
    assert guest.run("edgectl", "--help").startswith("usage: edgectl")
    assert guest.run("dpkg", "--verify", AGENT_PACKAGE, RUNTIME_PACKAGE) == ""
    units = f"/usr/lib/systemd/system/{AGENT} /usr/lib/systemd/system/{RUNNER}"
    verified = guest.result("sh", "-c", f"systemd-analyze verify {units} /usr/lib/systemd/system/*edge*.timer")
    complaints = [line for line in verified.stderr.splitlines() if "edge" in line and "man " not in line]
    assert complaints == []


def test_the_runtime_has_a_working_task_sdk_and_no_path_of_the_builder(debian: DebianMachine) -> None:
    guest = debian.guest
    debian.apt("install", RUNTIME_PACKAGE)
    code = (
        "import sys, airflow.sdk, airflow.sdk.execution_time.supervisor as s, pydantic_core; "
        "print(sys.prefix, s.__cached__, s.supervise_task.__code__.co_filename)"
    )
    prefix, cached, compiled_for = guest.run(f"{RUNTIMES}/bin/python", "-I", "-c", code).split()[-3:]
    # Not 'current': a process must not change its version when the link does.
    assert prefix == f"{RUNTIMES}/{debian.current_runtime()}"
    assert cached.startswith(f"{prefix}/lib/")
    assert compiled_for == s_path(cached)
    # Read from the bytecode, not compiled again: another user could not even write it.
    assert guest.run("sh", "-c", f"find {RUNTIMES} -newer {RUNTIMES}/current -name '*.pyc' | head -n 3") == ""


def s_path(cached: str) -> str:
    """Return the source file of a cached module."""
    return re.sub(r"__pycache__/(\w+)\.cpython-\d+\.pyc$", r"\1.py", cached)


@pytest.mark.sample
def test_enrolled_it_runs_the_demo(debian: DebianMachine, site: AirflowSite) -> None:
    debian.apt("install", AGENT_PACKAGE)
    edge = debian.enrol(site, "demo")
    run_id = site.api.trigger_dag("edge_demo")
    state = site.api.wait_for_run("edge_demo", run_id, seconds=180)
    prefixes = [line.event for line in site.api.log(site.api.task_instance("edge_demo", run_id, "list_sensors"))]
    assert state == "success", prefixes
    assert any(f"{RUNTIMES}/{debian.current_runtime()}" in line for line in prefixes), prefixes
    debian.guest.run("edgectl", "maintenance", "on", "--comment", "new disk")
    wait_until(
        lambda: edge.edgectl("status")["state"] == "maintenance mode",
        seconds=30,
        what="maintenance",
        seen=lambda: edge.edgectl("status"),
    )


def test_up_and_down_with_tasks_at_work(debian: DebianMachine, site: AirflowSite) -> None:
    guest = debian.guest
    debian.install_release(1)
    edge = debian.enrol(site, "upgrade")
    first_runtime = debian.current_runtime()
    held, late = edge.send("hold"), edge.send("late")
    held.wait_began()
    late.wait_began()
    pid, runner = edge.pid(), guest.main_pid(RUNNER)

    done = debian.apt("upgrade")
    print(f"upgraded under load in {done.seconds:.1f} s")
    assert done.complaints == []
    assert "-2.py" in debian.version()
    second_runtime = debian.current_runtime()
    assert second_runtime != first_runtime
    assert edge.pid() != pid, "the agent still runs the old version"
    assert guest.result("kill", "-0", str(runner)).returncode == 0, "the runner was ended"
    edge.wait_connected()
    held.wait_for_more_lines()

    # In use, so still there, whatever the package manager has deleted.
    guest.run("/usr/lib/airflow-edge-runtime/edge-runtime", "clean")
    assert sorted(debian.runtimes()) == sorted([first_runtime, second_runtime])
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
    assert debian.install_release(1).complaints == []
    edge.wait_connected()
    assert debian.current_runtime() == first_runtime
    held.wait_for_more_lines()
    held.check_unharmed()

    # Nothing uses the second one any more.
    def only_the_first() -> bool:
        guest.run(
            "find",
            f"{RUNTIMES}/{second_runtime}/.replaced",
            "-exec",
            "touch",
            "-d",
            "1 hour ago",
            "{}",
            ";",
            check=False,
        )
        guest.run("systemctl", "start", "airflow-edge-runtime-clean.service")
        return debian.runtimes() == [first_runtime]

    wait_until(only_the_first, seconds=60, what="the unused runtime to go", poll_seconds=1, seen=debian.runtimes)


def test_the_administrators_choices_survive(debian: DebianMachine) -> None:
    guest = debian.guest
    debian.install_release(1)
    guest.run(
        "sh", "-c", "echo '# mine' >> /etc/airflow-edge-agent/agent.toml; echo '# too' >> /etc/default/edge-agent"
    )
    for choice in ("enable", "disable", "mask"):
        guest.run("systemctl", choice, AGENT)
        state = debian.is_enabled()
        for release in (2, 1):
            assert debian.install_release(release).complaints == []
            assert debian.is_enabled() == state
            assert guest.show(AGENT, "ActiveState") == "inactive", "an upgrade has started it"
        debian.apt("remove", AGENT_PACKAGE)
        debian.install_release(1)
        assert debian.is_enabled() == state
    assert guest.read("/etc/airflow-edge-agent/agent.toml").endswith("# mine\n")
    assert guest.read("/etc/default/edge-agent").endswith("# too\n")


def test_policy_rc_d_is_obeyed(debian: DebianMachine, site: AirflowSite) -> None:
    guest = debian.guest
    debian.install_release(1)
    edge = debian.enrol(site, "policy")
    pid = edge.pid()
    guest.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", mode="0755")
    debian.install_release(2)
    assert edge.pid() == pid
    guest.run("rm", "/usr/sbin/policy-rc.d")
    debian.install_release(1)
    assert edge.pid() != pid


def test_a_removal_waits_ends_and_keeps_and_a_purge_deletes(debian: DebianMachine, site: AirflowSite) -> None:
    guest = debian.guest
    before = debian.files()
    debian.install_release(2)
    edge = debian.enrol(site, "removal")
    guest.run("sh", "-c", "echo REMOVE_DRAIN_SECONDS=8 >> /etc/default/edge-agent")
    held = edge.send("hold")
    held.wait_began()

    done = debian.apt("remove", AGENT_PACKAGE, RUNTIME_PACKAGE)
    assert done.complaints == [
        f"{AGENT_PACKAGE}: waiting up to 8 s for running tasks (REMOVE_DRAIN_SECONDS in /etc/default/edge-agent)",
        f"{AGENT_PACKAGE}: ending the tasks that still run",
    ]
    assert held.wait() == "failed"
    assert guest.run("pgrep", "-u", "edge-task,edge-agent", check=False) == ""
    # Identity and configuration stay, and are enough to go on.
    token = guest.read("/etc/airflow-edge-agent/token")
    assert token.strip() == edge.token
    debian.install_release(2)
    guest.run("systemctl", "start", AGENT)
    edge.wait_connected()
    again = edge.send("hold")
    again.wait_began()
    again.check_unharmed()

    done = debian.apt("purge", AGENT_PACKAGE, RUNTIME_PACKAGE)
    assert done.complaints == [f"{AGENT_PACKAGE}: deleting this agent's identity, state and task logs"]
    assert debian.files() - before == set()
    assert guest.run("systemctl", "list-unit-files", "--no-legend", "*edge*") == ""


def test_a_half_way_installation_recovers(debian: DebianMachine) -> None:
    guest = debian.guest
    guest.run("sh", "-c", "mv /usr/bin/systemd-sysusers /root/ && ln -s /bin/false /usr/bin/systemd-sysusers")
    done = guest.result(
        "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-y", "install", AGENT_PACKAGE, seconds=300
    )
    assert done.returncode != 0
    # As after a power failure in the middle of making the new runtime.
    guest.run("sh", "-c", f"rm -rf {RUNTIMES}/current {RUNTIMES}/*/.version && mkdir -p {RUNTIMES}/.new-half/lib")
    guest.run("mv", "/root/systemd-sysusers", "/usr/bin/systemd-sysusers")
    debian.apt("install", "--reinstall", RUNTIME_PACKAGE)
    guest.run("dpkg", "--configure", "-a")
    assert guest.run("dpkg", "--audit") == ""
    assert guest.run("edge-agent", "version")
    assert debian.runtimes() == [debian.current_runtime()]
    assert guest.run("ls", "-A", RUNTIMES).split() == ["1" + debian.current_runtime()[1:], "bin", "current"]
