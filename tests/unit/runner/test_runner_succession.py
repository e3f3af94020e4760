"""A runner and its successor, jobs without an agent, and sockets that somebody else has opened. Without Airflow."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_edge_agent.runner import processes, wire
from airflow_edge_agent.runner.wire import Outcome
from harness.waiting import wait_until
from unit.runner.runner_client import SECONDS, Client, RunnerProcess, plain_runner, short_folder

PLAIN = Path(__file__).with_name("plain_runner.py")


@pytest.fixture
def base() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


def sleeper(client: Client, base: Path) -> tuple[str, list[int]]:
    flag = base / f"flag-{uuid.uuid4()}"
    job_id = client.run({"do": "sleep", "file": str(flag)})
    started = client.next(wire.Started, job_id)
    wait_until(flag.exists, seconds=SECONDS, what="the job", poll_seconds=0.01)
    return job_id, [process.pid for process in processes.family(started.pid)]


def when_ready(client: Client) -> None:
    if not client.next(wire.Hello).ready:
        client.next(wire.Ready)


def gone(pids: list[int]) -> bool:
    return all((process := processes.look(pid)) is None or process.dead for pid in pids)


def end_all(runner: RunnerProcess) -> None:
    """End the successors: nobody else knows them."""
    for process in processes.everything().values():
        try:
            command = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        except OSError:
            continue
        if str(runner.jobs).encode() in command and b"--predecessor" in command:
            processes.send(process, signal.SIGTERM)
            wait_until(lambda one=process: not processes.lives(one), seconds=SECONDS, what="the successor's end")  # type: ignore[misc] # bound here on purpose


def test_a_successor_is_started_as_it_is_told(base: Path) -> None:
    # Installed, the runner is started by a wrapper, which alone knows where the current task runtime is.
    program = Path(__file__).with_name("plain_runner.py")
    mark = base / "mark"
    wrapper = base / "wrapper with a space"
    wrapper.write_text(f'#!/bin/sh\necho "$MARK" >"{mark}"\nexec "{sys.executable}" -P "{program}" "$@"\n')
    wrapper.chmod(0o700)
    words = ["/usr/bin/env", "MARK=new runtime", str(wrapper)]
    with plain_runner(base, *(f"--successor={word}" for word in words)) as old, old.connect() as client:
        when_ready(client)
        try:
            client.send(wire.Renew())
            client.next(wire.Leaving)
            assert mark.read_text() == "new runtime\n"
            with Client(old.socket) as later:
                assert later.next(wire.Hello).pid != old.process.pid
        finally:
            end_all(old)


@pytest.mark.parametrize("how", ["command", "signal"])
def test_a_successor_takes_over_under_a_running_job(base: Path, how: str) -> None:
    with plain_runner(base) as old, old.connect() as client:
        when_ready(client)
        job_id, family = sleeper(client, base)
        try:
            if how == "command":
                client.send(wire.Renew())
            else:
                old.process.send_signal(signal.SIGHUP)
            client.next(wire.Leaving)
            with Client(old.socket) as later:
                hello = later.next(wire.Hello)
                assert hello.pid != old.process.pid
                assert (hello.ready, hello.leaving, hello.jobs) == (True, False, ())
                new_job = later.run({"do": "nothing"})
                assert later.result(new_job).outcome is Outcome.FINISHED
                assert not gone(family)
                # A daemon that comes now finds the old one, too.
                (generation,) = base.glob("runner-*.sock")
                assert stat.S_IMODE(generation.stat().st_mode) == 0o600
                with Client(generation) as other:
                    again = other.next(wire.Hello)
                    assert (again.pid, again.leaving) == (old.process.pid, True)
                    assert [job.job_id for job in again.jobs] == [job_id]
                    other.signal(job_id, 9)
                    assert other.result(job_id).outcome is Outcome.KILLED
                assert old.wait() == 0
                assert gone(family)
                assert not generation.exists()
                assert later.result(later.run({"do": "nothing"})).outcome is Outcome.FINISHED
        finally:
            end_all(old)
        assert not old.socket.exists()


def test_a_successor_that_does_not_start_changes_nothing(base: Path) -> None:
    gate = base / "gate"
    gate.touch()
    with plain_runner(base, slow_start=gate, UNUSABLE_IF=str(base / "broken")) as runner, runner.connect() as client:
        when_ready(client)
        job_id, family = sleeper(client, base)
        (base / "broken").touch()
        client.send(wire.Renew())
        assert "the successor is given up" in client.next(wire.Refused).detail
        assert not gone(family)
        assert client.result(client.run({"do": "nothing"})).outcome is Outcome.FINISHED
        client.signal(job_id, 9)
        client.result(job_id)


def test_a_successor_lives_as_long_as_its_predecessor(base: Path) -> None:
    with plain_runner(base, idle_seconds=0) as old, old.connect() as client:
        when_ready(client)
        job_id, _ = sleeper(client, base)
        client.send(wire.Renew())
        client.next(wire.Leaving)
        with Client(old.socket) as later:
            new = later.next(wire.Hello).pid
            later.result(later.run({"do": "nothing"}))
            later.send(wire.Stop())
            with Client(old.socket) as again:
                assert again.next(wire.Hello).pid == new
        client.signal(job_id, 9)
        client.result(job_id)
        assert old.wait() == 0
        wait_until(lambda: gone([new]), seconds=SECONDS, what="the successor's end", poll_seconds=0.05)


def test_systemd_hears_from_the_main_process_alone(base: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(base / "notify"))
        with plain_runner(base, NOTIFY_SOCKET=str(base / "notify")) as old, old.connect() as client:
            when_ready(client)
            client.send(wire.Renew())
            assert old.wait() == 0
            with Client(old.socket) as later:
                new = later.next(wire.Hello).pid
                later.send(wire.Stop())
                later.until_end()
        notified.settimeout(0)
        told = [notified.recv(1000).decode() for _ in range(3)]
        with pytest.raises(BlockingIOError):
            notified.recv(1000)
    assert told == ["READY=1\nSTATUS=ready", f"MAINPID={new}", "STOPPING=1"]


def test_told_to_end_a_successor_tells_its_predecessor(base: Path) -> None:
    with plain_runner(base) as old, old.connect() as client:
        when_ready(client)
        job_id, family = sleeper(client, base)
        client.send(wire.Renew())
        client.next(wire.Leaving)
        end_all(old)
        assert client.result(job_id).detail == "ended by SIGTERM, because the runner was told to stop"
        assert old.wait() == 0
        assert gone(family)


def test_jobs_whose_agent_stays_away_are_told_to_end(base: Path) -> None:
    with plain_runner(base, "--stop-without-agent-seconds", "0.5") as runner:
        with runner.connect() as client:
            when_ready(client)
            job_id, family = sleeper(client, base)
            time.sleep(0.7)
            assert not gone(family), "the agent is there"
        result = runner.jobs / job_id / "result.json"
        wait_until(result.exists, seconds=SECONDS, what="the result", poll_seconds=0.05)
        assert '"ended by SIGTERM, because the agent had been away for 0.5 s"' in result.read_text()
        assert gone(family)


def test_a_job_outlives_its_agent_by_default(base: Path) -> None:
    with plain_runner(base) as runner:
        with runner.connect() as client:
            when_ready(client)
            job_id, family = sleeper(client, base)
        with runner.connect() as client:
            assert [job.job_id for job in client.next(wire.Hello).jobs] == [job_id]
            assert not gone(family)
            client.signal(job_id, 9)
            client.result(job_id)


def test_a_runner_that_dies_takes_its_jobs_with_it(base: Path) -> None:
    with plain_runner(base) as runner, runner.connect() as client:
        when_ready(client)
        job_id, family = sleeper(client, base)
        begun = time.monotonic()
        runner.process.kill()
        result = runner.jobs / job_id / "result.json"
        wait_until(lambda: gone(family) and result.exists(), seconds=SECONDS, what="the end of all", poll_seconds=0.01)
        assert time.monotonic() - begun < 2
        assert wire.JobResult.from_dict(json.loads(result.read_text())).outcome is Outcome.LOST
        assert not (runner.jobs / job_id / "tmp").exists()


def test_a_runner_whose_zygote_dies_is_replaced(base: Path) -> None:
    with plain_runner(base) as runner, runner.connect() as client:
        when_ready(client)
        job_id, family = sleeper(client, base)
        try:
            (zygote,) = [
                pid
                for pid in processes.everything()
                if (one := processes.look(pid)) is not None
                and one.parent == runner.process.pid
                and Path(f"/proc/{pid}/comm").read_text() == "edge-zygote\n"
            ]
            os.kill(zygote, signal.SIGKILL)
            client.next(wire.Leaving)
            assert not gone(family)
            with Client(runner.socket) as later:
                assert later.result(later.run({"do": "nothing"})).outcome is Outcome.FINISHED
            client.signal(job_id, 9)
            assert client.result(job_id).outcome is Outcome.KILLED
        finally:
            end_all(runner)


def test_a_socket_that_systemd_has_opened(base: Path) -> None:
    (base / "jobs").mkdir()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(base / "r.sock"))
    listener.listen()
    # What systemd does: the socket at 3, and the pid that is to take it.
    start = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()));"
        "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
    )
    command = [sys.executable, "-c", start, str(listener.fileno()), str(PLAIN)]
    env = {"PATH": os.environ["PATH"], "SLOW_START": ""}
    process = subprocess.Popen(
        [*command, "--jobs-dir", str(base / "jobs"), "--idle-seconds", "60"], env=env, pass_fds=[listener.fileno()]
    )
    try:
        with Client(base / "r.sock") as client:
            when_ready(client)
            assert client.result(client.run({"do": "nothing"})).outcome is Outcome.FINISHED
            client.send(wire.Stop())
            client.until_end()
        assert process.wait(SECONDS) == 0
        assert (base / "r.sock").exists(), "it is systemd's to remove"
    finally:
        process.kill()
        process.wait()
        listener.close()


def test_only_named_users_may_connect(base: Path) -> None:
    with plain_runner(base, "--peer-uid", str(os.geteuid() + 4000)) as runner:
        wait_until(runner.socket.exists, seconds=SECONDS, what="the socket", poll_seconds=0.01)
        with Client(runner.socket) as client:
            if os.geteuid() == 0:
                assert client.next(wire.Hello).jobs == ()
            else:
                assert client.until_end() == []


def test_a_peer_that_is_no_user_is_told_in_one_line(base: Path) -> None:
    with plain_runner(base, "--peer-user", "nobody-of-that-name") as runner:
        assert runner.wait() == 78
        assert runner.log == "edge-runner: --peer-user nobody-of-that-name: there is no such user\n"
