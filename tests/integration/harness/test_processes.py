"""The promise of the harness: nothing that it starts is left running."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harness.ports import reserve_port
from harness.processes import Keeper, Managed, ProcessError, marked_processes
from harness.waiting import wait_until

pytestmark = pytest.mark.integration

DETACHED = "(setsid sleep 600 </dev/null >/dev/null 2>&1 &); exec sleep 600"
"""A shell that leaves a process in a session of its own behind."""


def _spawn(keeper: Keeper, folder: Path, script: str) -> Managed:
    return keeper.spawn("shell", ["/bin/sh", "-c", script], env={}, cwd=folder, log=folder / "log")


def _wait_for(keeper: Keeper, count: int) -> None:
    wait_until(lambda: len(keeper.processes()) == count, seconds=10, what=f"{count} processes", seen=keeper.processes)


def test_closing_ends_what_has_detached_itself(tmp_path: Path) -> None:
    with Keeper() as keeper:
        command = _spawn(keeper, tmp_path, DETACHED)
        _wait_for(keeper, 2)
        command.kill()
        _wait_for(keeper, 1)
        assert len(marked_processes(keeper.marker)) == 2  # the detached one, and the keeper itself
    assert marked_processes(keeper.marker) == []


def test_closing_kills_and_names_what_does_not_listen(tmp_path: Path) -> None:
    keeper = Keeper()
    _spawn(keeper, tmp_path, "trap '' TERM; while :; do sleep 0.2; done")
    _wait_for(keeper, 2)
    killed = keeper.close()
    assert any("trap" in name for name in killed)
    assert marked_processes(keeper.marker) == []


def test_all_end_when_the_harness_itself_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from harness.processes import Keeper; keeper = Keeper();"
        f"keeper.spawn('shell', ['/bin/sh', '-c', {DETACHED!r}], env={{}}, cwd=Path({str(tmp_path)!r}),"
        f" log=Path({str(tmp_path / 'log')!r})); print(keeper.marker, flush=True); time.sleep(600)"
    )
    tests = str(Path(__file__).parents[2])
    harness = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": tests}
    )
    assert harness.stdout is not None
    with harness.stdout:
        marker = harness.stdout.readline().strip()
        wait_until(lambda: len(marked_processes(marker)) == 3, seconds=10, what="keeper, shell and what it left")
        harness.send_signal(signal.SIGKILL)
        harness.wait()
    wait_until(
        lambda: not marked_processes(marker), seconds=15, what="all to end", seen=lambda: marked_processes(marker)
    )


def test_exit_codes_and_output_are_kept(tmp_path: Path) -> None:
    with Keeper() as keeper:
        command = _spawn(keeper, tmp_path, "echo to-the-log; exit 3")
        assert command.wait(10) == 3
        assert command.tail() == "to-the-log"
        assert not command.running
        killed = _spawn(keeper, tmp_path, "sleep 600")
        killed.kill()
        assert killed.exit_code == -signal.SIGKILL


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with Keeper() as keeper, pytest.raises(ProcessError, match=r"no-such-program: No such file or directory"):
        keeper.spawn("it", ["no-such-program"], env={}, cwd=tmp_path, log=tmp_path / "log")


def test_only_chosen_variables_are_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "not-for-you")
    with Keeper() as keeper:
        keeper.spawn("env", ["env"], env={"MINE": "1"}, cwd=tmp_path, log=tmp_path / "log").wait(10)
    lines = (tmp_path / "log").read_text().splitlines()
    assert "MINE=1" in lines
    assert not any(line.startswith("AIRFLOW") for line in lines)


def test_a_reserved_port_can_be_bound_by_a_server_at_once() -> None:
    port = reserve_port()
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", port))
        server.listen()
