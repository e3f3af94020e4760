"""The runner's program without Airflow: its socket, its jobs' processes, its own end."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_edge_agent.runner import processes, wire
from airflow_edge_agent.runner.wire import Outcome
from harness.waiting import wait_until
from unit.runner.runner_client import SECONDS, Client, RunnerProcess, plain_runner, short_folder


@pytest.fixture
def base() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


@pytest.fixture
def runner(base: Path) -> Iterator[RunnerProcess]:
    with plain_runner(base) as process:
        yield process


@pytest.fixture
def client(runner: RunnerProcess) -> Iterator[Client]:
    with runner.connect() as connection:
        connection.next(wire.Hello)
        yield connection


def appears(path: Path) -> None:
    wait_until(path.exists, seconds=SECONDS, what=f"{path.name}", poll_seconds=0.01)


def result_file(runner: RunnerProcess, job_id: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((runner.jobs / job_id / "result.json").read_text())
    return content


def sleeper(client: Client, base: Path) -> tuple[str, wire.Started, list[int]]:
    """Start a job with children; return them, too."""
    flag = base / f"flag-{uuid.uuid4()}"
    job_id = client.run({"do": "sleep", "file": str(flag)})
    started = client.next(wire.Started, job_id)
    appears(flag)
    family = [process.pid for process in processes.family(started.pid)]
    assert len(family) == 3
    return job_id, started, family


def gone(pids: list[int]) -> bool:
    return all((process := processes.look(pid)) is None or process.dead for pid in pids)


def test_a_job_runs_and_its_result_is_kept(runner: RunnerProcess, client: Client) -> None:
    job_id = client.run({"do": "nothing"})
    started = client.next(wire.Started, job_id)
    result = client.result(job_id)
    assert (result.outcome, result.exit_code, result.detail) == (Outcome.FINISHED, 0, None)
    assert 0 < result.wall_seconds < SECONDS
    assert result_file(runner, job_id) == result.as_dict()
    folder = runner.jobs / job_id
    assert {path.name for path in folder.iterdir()} == {"result.json", "pid.json", "supervisor.log"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    me = processes.look(runner.process.pid)
    assert me is not None
    assert json.loads((folder / "pid.json").read_text()) == {
        "pid": started.pid,
        "start_time": started.start_time,
        "boot_id": processes.boot_id(),
        "runner": {"pid": me.pid, "start_time": me.start_time},
    }


def test_a_job_inherits_nothing_of_the_runner(runner: RunnerProcess, client: Client, base: Path) -> None:
    job_id = client.run({"do": "tell", "file": str(base / "told")})
    assert client.result(job_id).outcome is Outcome.FINISHED
    told = json.loads((base / "told").read_text())
    log = str(runner.jobs / job_id / "supervisor.log")
    temp = str(runner.jobs / job_id / "tmp")
    assert sorted(told.pop("fds")) == sorted(["/dev/null", log, log, "pipe"])
    assert told == {
        "cwd": temp,
        "tmpdir": temp,
        "notify": None,
        "session": True,
        "mask": 0,
        "main": False,
        "umask": 0o077,
        "name": "edge-job",
    }
    assert not Path(temp).exists()


def test_the_bill_includes_what_the_job_started(client: Client) -> None:
    result = client.result(client.run({"do": "burn"}))
    assert 0.3 <= result.cpu_seconds < SECONDS
    assert result.peak_memory_bytes > 1_000_000


def test_what_a_job_leaves_behind_is_killed(client: Client, base: Path) -> None:
    assert client.result(client.run({"do": "leave", "file": str(base / "pid")})).outcome is Outcome.FINISHED
    assert gone([int((base / "pid").read_text())])


def test_a_leftover_does_not_touch_another_job(client: Client, base: Path) -> None:
    other, _, family = sleeper(client, base)
    client.result(client.run({"do": "leave", "file": str(base / "pid")}))
    assert gone([int((base / "pid").read_text())])
    assert not any(gone([pid]) for pid in family)
    client.signal(other, 9)
    client.result(other)


def test_sigkill_ends_everything_of_the_job(client: Client, base: Path) -> None:
    job_id, _, family = sleeper(client, base)
    client.signal(job_id, 9)
    result = client.result(job_id)
    assert (result.outcome, result.exit_code) == (Outcome.KILLED, None)
    assert result.detail == "ended by SIGKILL, as asked"
    assert gone(family)


def test_sigterm_ends_a_job(client: Client, base: Path) -> None:
    job_id, _, family = sleeper(client, base)
    client.signal(job_id, 15)
    result = client.result(job_id)
    assert (result.outcome, result.detail) == (Outcome.KILLED, "ended by SIGTERM, as asked")
    assert gone(family)


def test_a_supervisor_that_dies_is_a_crash(client: Client, base: Path) -> None:
    job_id, started, family = sleeper(client, base)
    os.kill(started.pid, signal.SIGKILL)
    result = client.result(job_id)
    assert result.outcome is Outcome.CRASHED
    assert result.detail == "the supervising process was ended by SIGKILL (out of memory?)"
    assert gone(family)


def test_an_unexpected_error_is_a_crash_and_shows_no_token(runner: RunnerProcess, client: Client) -> None:
    job_id = client.run({"do": "raise"}, token="secret-token")
    result = client.result(job_id)
    assert (result.outcome, result.detail) == (Outcome.CRASHED, "the supervisor failed: RuntimeError: with ***")
    assert "Traceback" in (runner.jobs / job_id / "supervisor.log").read_text()


def test_a_supervisor_that_says_nothing_is_a_crash(client: Client) -> None:
    result = client.result(client.run({"do": "exit", "code": 7}))
    assert (result.outcome, result.detail) == (Outcome.CRASHED, "the supervising process ended with exit code 7")


def test_a_job_runs_once(client: Client, base: Path) -> None:
    running, _, _ = sleeper(client, base)
    for job_id in (running, client.run({"do": "nothing"})):
        if job_id != running:
            client.result(job_id)
        client.run({"do": "nothing"}, job_id=job_id)
        assert client.next(wire.Refused, job_id).detail == "this job has been started before"
    client.signal(running, 9)
    client.result(running)


def test_a_signal_to_nobody_is_refused(client: Client) -> None:
    job_id = str(uuid.uuid4())
    client.signal(job_id, 9)
    assert client.next(wire.Refused, job_id).detail == "no such job is running here"


def test_jobs_survive_their_client(runner: RunnerProcess, client: Client, base: Path) -> None:
    job_id, started, _ = sleeper(client, base)
    short = client.run({"do": "nothing"})
    client.next(wire.Started, short)
    client.connection.close()
    appears(runner.jobs / short / "result.json")
    with runner.connect() as later:
        hello = later.next(wire.Hello)
        assert hello.ready
        assert [(job.job_id, job.pid, job.start_time) for job in hello.jobs] == [
            (job_id, started.pid, started.start_time)
        ]
        later.signal(job_id, 9)
        assert later.result(job_id).outcome is Outcome.KILLED


def test_all_clients_hear_all_events(runner: RunnerProcess, client: Client) -> None:
    with runner.connect() as other:
        other.next(wire.Hello)
        job_id = client.run({"do": "nothing"})
        assert client.result(job_id) == other.result(job_id)


@pytest.mark.parametrize("line", [b"garbage\n", b"\x00\xff\n", b'{"op":"run"}\n'])
def test_nonsense_ends_the_connection_and_not_the_runner(runner: RunnerProcess, client: Client, line: bytes) -> None:
    with runner.connect() as other:
        other.next(wire.Hello)
        other.connection.sendall(line)
        assert other.next(wire.Refused).job_id is None
        other.until_end()
    assert client.result(client.run({"do": "nothing"})).outcome is Outcome.FINISHED


def test_an_unknown_command_is_refused_and_the_connection_stays(client: Client) -> None:
    client.connection.sendall(b'{"op":"dance"}\n')
    assert client.next(wire.Refused).detail == "op: not known to this runner"
    assert client.result(client.run({"do": "nothing"})).outcome is Outcome.FINISHED


def test_an_endless_line_is_cut_off(runner: RunnerProcess, client: Client) -> None:
    with runner.connect() as other:
        other.next(wire.Hello)
        try:
            for _ in range(20):
                other.connection.sendall(b"x" * 1024 * 1024)
        except (BrokenPipeError, ConnectionResetError):
            pass
        other.until_end()
    assert client.result(client.run({"do": "nothing"})).outcome is Outcome.FINISHED


def test_jobs_wait_for_the_warm_up(base: Path) -> None:
    gate = base / "gate"
    with plain_runner(base, slow_start=gate) as runner, runner.connect() as client:
        assert client.next(wire.Hello).ready is False
        job_id = client.run({"do": "nothing"})
        cancelled = client.run({"do": "nothing"})
        client.signal(cancelled, 15)
        # Nothing of this is read before the zygote is there. What came together is looked at together.
        gate.touch()
        result = client.result(cancelled)
        assert (result.outcome, result.detail) == (
            Outcome.KILLED,
            "ended by SIGTERM, as asked, before it was started",
        )
        assert result_file(runner, cancelled) == result.as_dict()
        ready = client.next(wire.Ready)
        assert ready.versions.python
        assert ready.warmup_seconds > 0
        assert client.result(job_id).outcome is Outcome.FINISHED


def test_the_socket_is_private(runner: RunnerProcess, client: Client) -> None:
    assert stat.S_IMODE(runner.socket.stat().st_mode) == 0o600


def test_an_idle_runner_leaves(base: Path) -> None:
    with plain_runner(base, idle_seconds=0.3) as runner, runner.connect() as client:
        client.result(client.run({"do": "nothing"}))
        begun = time.monotonic()
        client.until_end()
        assert runner.wait() == 0
        assert time.monotonic() - begun >= 0.2
        assert not runner.socket.exists()
        assert runner.log == ""


def test_a_runner_with_a_job_is_not_idle(base: Path) -> None:
    with plain_runner(base, idle_seconds=0) as runner, runner.connect() as client:
        job_id, _, _ = sleeper(client, base)
        client.signal(job_id, 9)
        client.result(job_id)
        client.until_end()
        assert runner.wait() == 0


def test_stop_means_no_longer_than_needed(runner: RunnerProcess, client: Client, base: Path) -> None:
    job_id, _, _ = sleeper(client, base)
    client.send(wire.Stop())
    client.signal(job_id, 9)
    client.result(job_id)
    client.until_end()
    assert runner.wait() == 0


def test_sigterm_ends_jobs_and_runner(runner: RunnerProcess, client: Client, base: Path) -> None:
    job_id, _, family = sleeper(client, base)
    runner.process.terminate()
    assert client.result(job_id).outcome is Outcome.KILLED
    client.until_end()
    assert runner.wait() == 0
    assert gone(family)


@pytest.mark.parametrize("told", ["once", "again and again"])
def test_a_job_that_does_not_heed_sigterm_is_killed(
    runner: RunnerProcess, client: Client, base: Path, told: str
) -> None:
    flag = base / "flag"
    job_id = client.run({"do": "ignore", "file": str(flag)})
    appears(flag)
    begun = time.monotonic()
    runner.process.terminate()
    if told != "once":
        # Two signals in one go count as one.
        def ended() -> bool:
            runner.process.terminate()
            return runner.process.poll() is not None

        wait_until(ended, seconds=SECONDS, what="the runner's end", poll_seconds=0.05)
    result = client.result(job_id)
    assert (result.outcome, result.detail) == (
        Outcome.KILLED,
        "ended by SIGKILL, because the runner was told to stop",
    )
    assert runner.wait() == 0
    assert (time.monotonic() - begun >= 10) == (told == "once")


def test_there_is_one_runner_per_socket(runner: RunnerProcess, client: Client, base: Path) -> None:
    with plain_runner(base) as second:
        assert second.wait() == 75
    assert "another runner serves" in runner.log
    assert client.result(client.run({"do": "nothing"})).outcome is Outcome.FINISHED


def test_a_name_that_a_dead_runner_left_is_taken_over(base: Path) -> None:
    with plain_runner(base) as first, first.connect() as client:
        client.next(wire.Hello)
        first.process.kill()
        first.wait()
        assert first.socket.exists()
        with plain_runner(base) as second, second.connect() as again:
            assert again.next(wire.Hello).jobs == ()


def test_the_jobs_of_a_dead_runner_are_ended(base: Path) -> None:
    with plain_runner(base) as first, first.connect() as client:
        client.next(wire.Hello)
        job_id, started, family = sleeper(client, base)
        done = client.run({"do": "nothing"})
        client.result(done)
        first.process.kill()
        first.wait()
    ended_before = base / "jobs" / str(uuid.uuid4())
    ended_before.mkdir()
    (ended_before / "pid.json").write_text(
        json.dumps({"pid": started.pid, "start_time": started.start_time - 1, "boot_id": processes.boot_id()})
    )
    with plain_runner(base) as second, second.connect() as again:
        assert again.next(wire.Hello).jobs == ()
        assert gone(family)
        result = wire.JobResult.from_dict(result_file(second, job_id))
        assert (result.outcome, result.detail) == (Outcome.LOST, "the runner died; its task was ended")
        assert result_file(second, done)["outcome"] == "finished"
        assert not (ended_before / "result.json").exists()


def test_no_lock_is_left_with_the_jobs_of_a_dead_runner(base: Path) -> None:
    with plain_runner(base) as runner, runner.connect() as client:
        client.next(wire.Hello)
        _, started, _ = sleeper(client, base)
        runner.process.kill()
        runner.wait()
        folder = os.open(runner.jobs, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(folder)
            processes.kill_family(started.pid, session=started.pid)


def test_an_unusable_runtime_is_told_in_one_line(base: Path) -> None:
    program = Path(__file__).with_name("plain_runner.py")
    gate = base / "gate"
    env = {"PATH": os.environ["PATH"], "SLOW_START": str(gate), "UNUSABLE": "1"}
    runner = RunnerProcess(base, [sys.executable, str(program)], env, 60)
    try:
        with runner.connect() as client:
            job_id = client.run({"do": "nothing"})
            gate.touch()
            said = client.until_end()
            # The problem first, or the job goes straight to the next runner, which has it as well.
            assert said[-2:] == [
                wire.Problem(detail="nothing works here"),
                wire.Refused(job_id=job_id, detail="nothing works here"),
            ]
        assert runner.wait() == 78
        assert runner.log == "edge-runner: nothing works here\n"
    finally:
        runner.end()


def test_an_unusable_folder_is_told_in_one_line(base: Path) -> None:
    (base / "r.sock.lock").mkdir()
    with plain_runner(base) as runner:
        assert runner.wait() == 73
        assert runner.log == f"edge-runner: cannot use {base}/r.sock.lock: Is a directory\n"
