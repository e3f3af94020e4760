"""Who may do what: tasks, users of the machine, and readers of the journal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from harness.waiting import wait_until
from machine.edge import AGENT, CONTROL, CREDENTIAL, RUNNER_DIR, RUNNER_SOCKET, Edge

REFUSED = 3
"""Exit code of edgectl when the daemon says no."""
STATE = "/var/lib/airflow-edge-agent"


@pytest.fixture(scope="module")
def found(edge: Edge) -> dict[str, Any]:
    """Return how far a task came with what it must not be able to do."""
    errand = edge.send(
        "spy",
        daemon_pid=edge.pid(),
        secrets=[CREDENTIAL, f"{STATE}/identity.json", STATE, "/etc/shadow"],
        sockets=[CONTROL, RUNNER_SOCKET],
    )
    assert errand.wait() == "success", errand.log()
    found: dict[str, Any] = errand.returned()
    return found | {"daemon": edge.pid()}


def test_a_task_is_nobody_special(edge: Edge, found: dict[str, Any]) -> None:
    task = int(edge.guest.run("id", "-u", "edge-task"))
    group = int(edge.guest.run("id", "-g", "edge-task"))
    assert found["uid"] == task
    assert set(found["groups"]) <= {group}


def test_a_task_cannot_read_secrets(found: dict[str, Any]) -> None:
    for path in (CREDENTIAL, f"{STATE}/identity.json", "/etc/shadow"):
        assert found[path] == "PermissionError", path


def test_a_task_cannot_look_into_the_daemon_or_signal_it(found: dict[str, Any]) -> None:
    for name in ("mem", "environ"):
        assert found[f"/proc/{found['daemon']}/{name}"] == "PermissionError", name
    assert found["kill"] == "PermissionError"


def test_a_task_cannot_speak_to_the_runner(found: dict[str, Any]) -> None:
    assert found[RUNNER_SOCKET] == "PermissionError"


def test_a_task_has_no_variable_of_the_service_manager(found: dict[str, Any]) -> None:
    forbidden = {
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "LISTEN_FDS",
        "LISTEN_PID",
        "INVOCATION_ID",
        "JOURNAL_STREAM",
    }
    assert forbidden & set(found["variables"]) == set()


@pytest.fixture(scope="module")
def users(edge: Edge) -> Iterator[None]:
    """Make a reader and an operator."""
    edge.guest.run("groupadd", "--system", "edge-reader")
    edge.guest.run("useradd", "--system", "--user-group", "--groups", "edge-reader", "site-reader")
    edge.guest.run("useradd", "--system", "--user-group", "--groups", "edge-operator", "site-operator")
    edge.configure({"control": {"read_group": "edge-reader"}})
    edge.guest.run("systemctl", "restart", AGENT)
    edge.wait_connected()
    yield
    edge.guest.run("edgectl", "resume", check=False)


@pytest.mark.parametrize(
    ("user", "rights"),
    [
        ("nobody", ""),
        ("edge-task", ""),
        ("site-reader", "read"),
        ("site-operator", "read change"),
        ("root", "read change"),
    ],
)
def test_the_control_socket_knows_whom_it_speaks_to(edge: Edge, users: None, user: str, rights: str) -> None:
    as_user = None if user == "root" else user
    status = edge.guest.result("edgectl", "status", "--json", user=as_user)
    assert status.returncode == (0 if "read" in rights else REFUSED), status
    drain = edge.guest.result("edgectl", "drain", user=as_user)
    assert drain.returncode == (0 if "change" in rights else REFUSED), drain
    if "change" in rights:
        edge.guest.run("edgectl", "resume", user=as_user)


def test_the_journal_can_be_asked_by_dag(edge: Edge) -> None:
    errand = edge.send("hold")
    errand.wait_began()
    errand.check_unharmed()
    entries = edge.guest.journal("-t", "edge-agent", "AIRFLOW_DAG_ID=hold", f"AIRFLOW_RUN_ID={errand.run_id}")
    assert {entry["AIRFLOW_TASK_ID"] for entry in entries} == {"hold"}
    for field in ("AIRFLOW_TRY_NUMBER", "AIRFLOW_MAP_INDEX", "AIRFLOW_TI_ID", "EDGE_JOB_ID", "PRIORITY", "MESSAGE_ID"):
        assert any(field in entry for entry in entries), field
    assert not edge.guest.journal("-t", "edge-agent", "AIRFLOW_DAG_ID=no-such-dag")
    explained = edge.guest.run(
        "journalctl", "-x", "-q", "--no-pager", "-t", "edge-agent", f"AIRFLOW_RUN_ID={errand.run_id}"
    )
    assert "has started" in explained


def test_the_credential_is_the_agents_alone(edge: Edge) -> None:
    assert edge.guest.run("stat", "-c", "%a %U %G", CREDENTIAL).strip() == "600 edge-agent edge-agent"
    assert edge.guest.run("stat", "-c", "%U", f"{STATE}/identity.json").strip() == "edge-agent"


def test_task_logs_are_in_the_journal_if_they_are_wanted(edge: Edge) -> None:
    assert not edge.guest.journal("-t", "edge-task")
    edge.configure({"log": {"tasks_to_journal": True}})
    edge.guest.run("systemctl", "restart", AGENT)
    edge.wait_connected()
    errand = edge.send("hold")
    errand.wait_began()
    errand.check_unharmed()

    def told() -> list[str]:
        entries = edge.guest.journal("-t", "edge-task", "AIRFLOW_DAG_ID=hold", f"AIRFLOW_RUN_ID={errand.run_id}")
        return [entry["MESSAGE"] for entry in entries if str(entry["MESSAGE"]).startswith("line ")]

    wait_until(lambda: told() == errand.lines(), seconds=30, what="all lines in the journal", seen=told)


def test_no_secret_is_in_the_journal(edge: Edge) -> None:
    whole = edge.guest.run("journalctl", "-q", "--no-pager", "-o", "export", "--all")
    for secret in (edge.token, edge.guest.read(CREDENTIAL).strip()):
        # The secret may have underscores of its own.
        assert secret.split("_", 2)[2] not in whole


def test_what_the_runner_leaves_is_not_for_others(edge: Edge) -> None:
    open_to_others = edge.guest.run("find", RUNNER_DIR, STATE, "-perm", "/o+rwx", "!", "-type", "l")
    assert open_to_others == ""
