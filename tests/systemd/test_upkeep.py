"""Watchdog, reload, crash loops, bad configuration, maintenance, reboot."""

from __future__ import annotations

import json

import pytest

from harness.waiting import wait_until
from machine.edge import AGENT, CONFIG, RUNNER, Edge, MakeEdge
from machine.guest import GuestError


@pytest.fixture
def quick_watchdog(edge: Edge) -> None:
    """Let systemd lose patience within seconds, and the daemon allow to be frozen."""
    edge.drop_in(AGENT, "[Service]\nWatchdogSec=6\nRestartSec=1\nEnvironment=EDGE_AGENT_DEBUG=1\n")
    edge.guest.run("systemctl", "restart", AGENT)
    edge.wait_connected()


@pytest.mark.parametrize("kind", ["block", "hang"])
def test_a_frozen_loop_is_named_and_the_daemon_restarted(edge: Edge, quick_watchdog: None, kind: str) -> None:
    errand = edge.send("hold")
    errand.wait_began()
    before, runner = edge.invocation(), edge.guest.main_pid(RUNNER)
    request = json.dumps({"do": "freeze", "loop": "time", "how": kind})
    talk = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect('/run/airflow-edge-agent/control.sock'); "
        "s.sendall(sys.argv[1].encode() + b'\\n'); print(s.recv(1000).decode())"
    )
    assert json.loads(edge.guest.run("python3", "-c", talk, request))["ok"]
    wait_until(
        lambda: edge.guest.show(AGENT, "InvocationID") not in {"", before},
        seconds=60,
        what="systemd to start the daemon again",
    )
    old = f"_SYSTEMD_INVOCATION_ID={before}"
    entries = edge.guest.journal(old, "+", f"INVOCATION_ID={before}")
    texts = [str(entry.get("MESSAGE")) for entry in entries]
    named = next(
        i
        for i, entry in enumerate(entries)
        if "time" in str(entry.get("LOOP", entry.get("MESSAGE"))) and "stuck" in texts[i]
    )
    aborted = next(i for i, text in enumerate(texts) if "Watchdog timeout" in text)
    assert named < aborted, texts
    edge.guest.wait_for_unit(AGENT, "active")
    edge.wait_connected()
    assert edge.guest.main_pid(RUNNER) == runner
    errand.wait_for_more_lines()
    errand.check_unharmed()


def test_a_server_outage_is_not_ill_health(edge: Edge, quick_watchdog: None) -> None:
    before = edge.invocation()
    edge.site.stop_component("api-server")
    try:
        edge.guest.wait_for_message("not connected", f"_SYSTEMD_INVOCATION_ID={before}", seconds=60)
        # Longer than the watchdog allows.
        began = float(edge.guest.run("cut", "-d ", "-f1", "/proc/uptime"))
        wait_until(
            lambda: float(edge.guest.run("cut", "-d ", "-f1", "/proc/uptime")) > began + 9,
            seconds=30,
            what="one and a half intervals of the watchdog",
        )
        assert edge.invocation() == before
        assert edge.guest.show(AGENT, "ActiveState") == "active"
        assert "connected" in edge.guest.show(AGENT, "StatusText")
    finally:
        edge.site.start_component("api-server")
        edge.site.wait_api()


def test_reload_applies_what_it_can_and_names_the_rest(edge: Edge) -> None:
    before = edge.pid()
    edge.configure({"concurrency": 7, "name": edge.name, "log": {"level": "debug"}})
    edge.guest.run("systemctl", "reload", AGENT)
    wait_until(
        lambda: "/7" in edge.guest.show(AGENT, "StatusText"),
        seconds=30,
        what="seven slots",
        seen=lambda: edge.guest.show(AGENT, "StatusText"),
    )
    assert edge.pid() == before
    assert edge.guest.show(AGENT, "ActiveState") == "active"


def test_reload_of_a_bad_configuration_fails_and_changes_nothing(edge: Edge) -> None:
    before = edge.pid()
    good = edge.guest.read(CONFIG)
    edge.guest.write(CONFIG, good.replace("concurrency", "concurency"))
    try:
        with pytest.raises(GuestError):
            edge.guest.run("systemctl", "reload", AGENT)
        assert edge.pid() == before
        assert edge.guest.show(AGENT, "ActiveState") == "active"
        edge.guest.wait_for_message("did you mean 'concurrency'", "-u", AGENT)
        errand = edge.send("hold")
        errand.wait_began()
        errand.check_unharmed()
    finally:
        edge.guest.write(CONFIG, good)


def test_a_bad_configuration_at_start_stops_with_78_and_stays_down(make_edge: MakeEdge) -> None:
    edge = make_edge()
    edge.guest.write(CONFIG, "server_ur = 'http://127.0.0.1'\n")
    edge.guest.result("systemctl", "start", AGENT)
    edge.guest.wait_for_unit(AGENT, "failed")
    assert edge.guest.show(AGENT, "ExecMainStatus") == "78"
    assert edge.guest.show(AGENT, "NRestarts") == "0"
    edge.guest.wait_for_message("server_ur", "-u", AGENT)


def test_a_crash_loop_never_ends_in_giving_up(make_edge: MakeEdge) -> None:
    edge = make_edge()
    edge.drop_in(AGENT, "[Service]\nRestartSec=50ms\nExecStart=\nExecStart=/bin/sh -c 'exit 70'\n")
    edge.guest.run("systemctl", "start", "--no-block", AGENT)
    # systemd's default gives up after five starts in ten seconds.
    wait_until(lambda: int(edge.guest.show(AGENT, "NRestarts")) > 12, seconds=30, what="more than twelve restarts")
    edge.remove_drop_in(AGENT)
    edge.guest.wait_for_unit(AGENT, "active")
    edge.wait_connected()


def test_maintenance_survives_restart_and_reboot(edge: Edge) -> None:
    edge.guest.run("edgectl", "maintenance", "on", "--comment", "the belt is being changed")
    wait_until(
        lambda: "maintenance" in edge.guest.show(AGENT, "StatusText"),
        seconds=30,
        what="maintenance",
        seen=lambda: edge.guest.show(AGENT, "StatusText"),
    )
    edge.guest.run("systemctl", "restart", AGENT)
    edge.wait_connected()
    assert "maintenance" in edge.guest.show(AGENT, "StatusText")
    edge.guest.reboot()
    edge.guest.wait_for_unit(AGENT, "active")
    edge.wait_connected()
    wait_until(
        lambda: "maintenance" in edge.guest.show(AGENT, "StatusText"),
        seconds=30,
        what="maintenance",
        seen=lambda: edge.guest.show(AGENT, "StatusText"),
    )
    listed = edge.site.cli("edge-agents", "list", "--output", "json")
    mine = next(row for row in json.loads(listed[listed.index("[") :]) if row["name"] == edge.name)
    assert "maintenance" in mine["state"], mine
    assert "the belt is being changed" in str(mine), mine
    edge.guest.run("edgectl", "maintenance", "off")
    errand = edge.send("hold")
    errand.wait_began()
    errand.check_unharmed()


def test_a_reboot_under_a_task_is_reported_as_such(edge: Edge) -> None:
    errand = edge.send("hold")
    errand.wait_began()
    # To read afterwards what was said before.
    edge.guest.run("sh", "-c", "mkdir -p /var/log/journal && journalctl --flush")
    before = edge.invocation()
    edge.guest.reboot()
    edge.guest.wait_for_unit(AGENT, "active")
    assert errand.wait() == "failed"
    assert [note[0] for note in errand.notes()] == ["began"]
    edge.guest.wait_for_message("stopping (the host is shutting down), ends 1 running", "-t", "edge-agent")
    detail = str(edge.site.query(f"SELECT detail FROM edge_agent_job WHERE run_id = '{errand.run_id}'"))
    assert "the agent was stopped (the host is shutting down)" in detail, detail
    assert edge.invocation() != before
