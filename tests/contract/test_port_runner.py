"""What every runner does, seen from the daemon. The real one runs with this Python, which has the Task SDK."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from airflow_edge_agent.adapters.jobstore import DirectoryJobStore
from airflow_edge_agent.adapters.runner import PROGRAM, RunnerOptions, SubprocessRunner
from airflow_edge_agent.ports import (
    JobStore,
    Runner,
    RunnerEnded,
    RunnerError,
    RunnerEvent,
    RunnerGone,
    RunnerNotRenewed,
    RunnerReady,
    RunnerRefused,
    RunnerStarted,
    RunnerUnusable,
)
from airflow_edge_agent.protocol.frames import Offer, Usage
from airflow_edge_agent.protocol.jobs import Outcome
from fakes import MemoryJobStore, MemoryRunner
from fakes.frames import make_offer, new_id
from fakes.waiting import eventually

SECONDS = 60
"""The real one loads the Task SDK first."""

SERVER = "http://127.0.0.1:1/execution/"


@dataclass
class Side:
    """A runner, the jobs' files, and the runner's events as they come."""

    runner: Runner
    store: JobStore
    events: AsyncIterator[RunnerEvent]

    async def next_event(self) -> RunnerEvent:
        return await asyncio.wait_for(anext(self.events), SECONDS)

    async def next_of(self, *kinds: type[RunnerEvent]) -> RunnerEvent:
        while not isinstance(event := await self.next_event(), kinds):
            pass
        return event

    async def hand_over(self, offer: Offer) -> None:
        self.store.add(offer, "boot")
        await self.runner.start(offer, SERVER)

    def tell_invalid(self, offer: Offer) -> None:
        """The fake does not judge workloads: say what the real one does about an invalid one."""
        if isinstance(self.runner, MemoryRunner):
            assert isinstance(self.store, MemoryJobStore)
            self.store.runner_ended(offer.job_id, Outcome.NOT_STARTED, None, "the workload is invalid", Usage())
            self.runner.end(offer.job_id)


def environment(directory: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "AIRFLOW_HOME": str(directory / "airflow-home"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }


def real_runner(directory: Path, *, python: str = sys.executable, idle_seconds: float = 60) -> SubprocessRunner:
    return SubprocessRunner(
        python=Path(python),
        socket_path=directory / "runner.sock",
        runner_dir=directory,
        options=RunnerOptions(idle_seconds=idle_seconds),
        environment=environment(directory),
    )


async def end(runner: SubprocessRunner) -> None:
    """Close it: a runner without jobs ends with it."""
    process = runner._process
    await runner.close()
    if process is not None:
        try:
            await asyncio.to_thread(process.wait, 20)
        finally:
            process.kill()
            await asyncio.to_thread(process.wait)


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not below pytest's own: a socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="runner-", ignore_cleanup_errors=True) as name:
        path = Path(name)
        (path / "jobs").mkdir()
        yield path


@pytest.fixture(params=["subprocess", "memory"])
async def side(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[Side]:
    if request.param == "memory":
        memory = MemoryRunner()
        yield Side(memory, MemoryJobStore(), memory.events())
        await memory.close()
        return
    runner = real_runner(directory)
    yield Side(runner, DirectoryJobStore(directory / "jobs", directory), runner.events())
    await end(runner)


def ended_job(event: RunnerEvent) -> str:
    assert isinstance(event, RunnerEnded)
    return event.job_id


async def test_a_job_is_started_and_ends_with_a_result(side: Side) -> None:
    offer = make_offer(workload={"type": "ExecuteTask", "nonsense": True})
    await side.hand_over(offer)
    side.tell_invalid(offer)
    ready = await side.next_event()
    assert isinstance(ready, RunnerReady)
    assert ready.versions["task_sdk"]
    assert ready.versions["python"]
    event = await side.next_of(RunnerStarted, RunnerRefused, RunnerEnded)
    if isinstance(event, RunnerStarted):
        # A job that turns out to be nonsense before it has a process ends without.
        assert event.job_id == offer.job_id
        assert event.pid > 1
        event = await side.next_event()
    assert ended_job(event) == offer.job_id
    ended = side.store.ended(offer.job_id)
    assert ended is not None
    assert ended.outcome in {Outcome.NOT_STARTED, Outcome.FAILED, Outcome.CRASHED}
    assert ended.detail


async def test_jobs_handed_over_together_each_get_their_own_end(side: Side) -> None:
    offers = [make_offer(workload={"number": n}) for n in range(3)]
    await asyncio.gather(*(side.hand_over(offer) for offer in offers))
    for offer in offers:
        side.tell_invalid(offer)
    ended: set[str] = set()
    while len(ended) < len(offers):
        event = await side.next_of(RunnerEnded)
        assert isinstance(event, RunnerEnded)
        ended.add(event.job_id)
    assert ended == {offer.job_id for offer in offers}


async def test_nothing_to_reattach_to(side: Side) -> None:
    assert await side.runner.reattach() == {}


async def test_signalling_a_job_that_is_not_there_is_no_error(side: Side) -> None:
    await side.runner.signal(new_id(), "TERM")
    await side.runner.signal(new_id(), "KILL")


async def test_there_is_nothing_to_renew_without_a_runner(side: Side) -> None:
    assert not await side.runner.renew()
    assert not await side.runner.renew(if_changed=True)


async def test_a_renewed_runner_takes_jobs_as_before(side: Side) -> None:
    async def run() -> None:
        offer = make_offer()
        await side.hand_over(offer)
        side.tell_invalid(offer)
        assert ended_job(await side.next_of(RunnerEnded)) == offer.job_id

    await run()
    assert not await side.runner.renew(if_changed=True)
    assert await side.runner.renew()
    await run()
    if isinstance(real := side.runner, SubprocessRunner):
        # Else the last job might still go to the old one, and nobody would tell the new one to end.
        await eventually(lambda: real._current is None, SECONDS)
    await run()


async def test_closing_twice_is_no_error(side: Side) -> None:
    await side.runner.close()
    await side.runner.close()


# What only processes can show --------------------------------------------------------------------------------------


def job_that_waits() -> Offer:
    """A job whose supervisor cannot reach the Execution API and goes on trying."""
    return make_offer(
        workload={
            "type": "ExecuteTask",
            "ti": {
                "id": "019ca6fe-0000-7000-8000-000000000001",
                "dag_version_id": "019ca6fe-0000-7000-8000-000000000002",
                "task_id": "t",
                "dag_id": "d",
                "run_id": "r",
                "try_number": 1,
                "map_index": -1,
                "pool_slots": 1,
                "queue": "default",
                "priority_weight": 1,
            },
            "dag_rel_path": "d.py",
            "bundle_info": {"name": "b", "version": None},
            "log_path": "d/t.log",
        }
    )


def seen_by_others(directory: Path, pid: int) -> list[str]:
    """What other users of the machine, and whoever gets the disk, may see of a job."""
    processes = [psutil.Process(pid), *psutil.Process(pid).parents()[:1]]
    seen = [" ".join(process.cmdline()) for process in processes]
    seen += [str(process.environ()) for process in processes]
    return seen + [path.read_text(errors="replace") for path in directory.rglob("*") if path.is_file()]


async def test_the_next_daemon_takes_over_the_jobs_of_the_last_one(directory: Path) -> None:
    first, store = real_runner(directory), DirectoryJobStore(directory / "jobs", directory)
    side = Side(first, store, first.events())
    offer = job_that_waits().model_copy(update={"token": "very-secret-job-token"})
    await side.hand_over(offer)
    started = await side.next_of(RunnerStarted)
    assert isinstance(started, RunnerStarted)
    process = first._process
    assert process is not None
    second = real_runner(directory)
    try:
        # As when the daemon is killed: no farewell.
        await first._drop()
        assert await second.reattach() == {offer.job_id: started.pid}
        await eventually(lambda: store.load()[0].handed_over, SECONDS)
        assert store.ended(offer.job_id) is None
        assert not [text for text in seen_by_others(directory, started.pid) if "very-secret" in text]
        await second.signal(offer.job_id, "KILL")
        other = Side(second, store, second.events())
        assert isinstance(await other.next_event(), RunnerReady)
        assert ended_job(await other.next_of(RunnerEnded)) == offer.job_id
        ended = store.ended(offer.job_id)
        assert ended is not None
        assert ended.outcome is Outcome.KILLED
        assert not psutil.pid_exists(started.pid)
    finally:
        await end(second)
        process.terminate()
        await asyncio.to_thread(process.wait, 20)


async def test_a_runner_is_renewed_when_other_code_is_on_disk(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = directory / "code"
    shutil.copytree(PROGRAM.parent, code)
    monkeypatch.setattr("airflow_edge_agent.adapters.runner.PROGRAM", code / "__main__.py")
    runner, store = real_runner(directory), DirectoryJobStore(directory / "jobs", directory)
    side = Side(runner, store, runner.events())
    first = job_that_waits()
    try:
        await side.hand_over(first)
        started = await side.next_of(RunnerStarted)
        assert isinstance(started, RunnerStarted)
        old = psutil.Process(started.pid).ppid()
        assert not await runner.renew(if_changed=True)
        # As package managers do it: another file in its place.
        (code / "new").write_text((code / "work.py").read_text())
        (code / "new").rename(code / "work.py")
        assert await runner.renew(if_changed=True)
        assert not await runner.renew(if_changed=True)
        # What is sent before the old one has said that it leaves, it still takes.
        await eventually(lambda: runner._current is None, SECONDS)
        second = job_that_waits()
        await side.hand_over(second)
        again = await side.next_of(RunnerStarted)
        assert isinstance(again, RunnerStarted)
        assert psutil.Process(again.pid).ppid() != old
        assert psutil.Process(started.pid).ppid() == old
        for offer in (first, second):
            await runner.signal(offer.job_id, "KILL")
            assert ended_job(await side.next_of(RunnerEnded)) == offer.job_id
        # Our own child: not a zombie, either, although its successor is there.
        await eventually(lambda: not psutil.pid_exists(old), SECONDS)
    finally:
        await end(runner)
        # Its successor is nobody's child here.
        for one in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if str(directory) in " ".join(one.cmdline()):
                    one.kill()
                    one.wait(10)


async def test_a_renewal_that_fails_is_told(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = directory / "code"
    shutil.copytree(PROGRAM.parent, code)
    monkeypatch.setattr("airflow_edge_agent.adapters.runner.PROGRAM", code / "__main__.py")
    runner, store = real_runner(directory), DirectoryJobStore(directory / "jobs", directory)
    side = Side(runner, store, runner.events())
    try:
        offer = make_offer()
        await side.hand_over(offer)
        await side.next_of(RunnerEnded)
        (code / "main.py").write_text("raise SystemExit(1)\n")
        assert await runner.renew(if_changed=True)
        told = await side.next_of(RunnerNotRenewed)
        assert isinstance(told, RunnerNotRenewed)
        assert "this runner goes on" in told.detail
        offer = make_offer()
        await side.hand_over(offer)
        assert ended_job(await side.next_of(RunnerEnded)) == offer.job_id
    finally:
        await end(runner)


async def test_the_runners_own_log_is_bounded(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_edge_agent.adapters.runner.MAX_LOG_BYTES", 1_000)
    (directory / "runner.log").write_text("the last words of an earlier one\n")
    runner, store = real_runner(directory), DirectoryJobStore(directory / "jobs", directory)
    side = Side(runner, store, runner.events())
    try:
        for _ in range(2):
            offer = make_offer()
            await side.hand_over(offer)
            assert isinstance(await side.next_of(RunnerEnded), RunnerEnded)
            assert (directory / "runner.log").stat().st_size <= 1_000
            with (directory / "runner.log").open("a") as log:
                log.write("x" * 2_000)
        assert (directory / "runner.log.1").read_text().endswith("x" * 2_000)
    finally:
        await end(runner)


async def test_a_runner_that_is_killed_is_missed_with_its_jobs(directory: Path) -> None:
    runner, store = real_runner(directory), DirectoryJobStore(directory / "jobs", directory)
    side = Side(runner, store, runner.events())
    offer = job_that_waits()
    await side.hand_over(offer)
    started = await side.next_of(RunnerStarted)
    assert isinstance(started, RunnerStarted)
    process = runner._process
    assert process is not None
    try:
        process.kill()
        gone = await side.next_of(RunnerGone)
        assert gone == RunnerGone(None, frozenset({offer.job_id}))
        await eventually(lambda: not psutil.pid_exists(started.pid), 2)
        await eventually(lambda: store.ended(offer.job_id) is not None, 2)
        ended = store.ended(offer.job_id)
        assert ended is not None
        assert (ended.outcome, ended.detail) == (Outcome.LOST, "the runner died; its task was ended")
    finally:
        await end(runner)


async def test_the_next_job_gets_a_new_runner_after_an_idle_one_has_left(directory: Path) -> None:
    runner, store = real_runner(directory, idle_seconds=0), DirectoryJobStore(directory / "jobs", directory)
    side = Side(runner, store, runner.events())
    try:
        for _ in range(2):
            # The second one is handed over in the very moment in which the first runner leaves.
            offer = make_offer()
            await side.hand_over(offer)
            assert ended_job(await side.next_of(RunnerEnded)) == offer.job_id
            gone = await side.next_of(RunnerGone)
            assert gone == RunnerGone(None)
    finally:
        await end(runner)


@pytest.mark.parametrize(
    ("python", "words"),
    [("/nonexistent/python", "check runner.python"), ("/bin/true", "ended at once"), ("/etc/passwd", "cannot be run")],
)
async def test_a_python_that_does_not_work(directory: Path, python: str, words: str) -> None:
    runner = real_runner(directory, python=python)
    with pytest.raises(RunnerError, match=words) as caught:
        await runner.start(make_offer(), SERVER)
    assert "\n" not in str(caught.value)
    await runner.close()


async def test_something_else_on_the_socket_is_not_taken_for_a_runner(directory: Path) -> None:
    async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(babble, directory / "runner.sock")
    runner = real_runner(directory)
    assert await runner.reattach() == {}
    server.close()
    await server.wait_closed()
    await runner.close()


async def scripted_runner(directory: Path, *lines: bytes) -> tuple[asyncio.Server, asyncio.Event]:
    """A runner that says these lines and then hangs up when the event is set."""
    hang_up = asyncio.Event()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"".join(line + b"\n" for line in lines))
        await writer.drain()
        await hang_up.wait()
        writer.close()

    return await asyncio.start_unix_server(speak, directory / "runner.sock"), hang_up


@pytest.mark.parametrize(
    "line",
    [b'{"ev":"started","job_id":"x","pid":null}', b'{"ev":"started"}', b"[]", b"{", b'{"ev":"finished"}'],
)
async def test_a_runner_that_talks_nonsense_counts_as_gone(directory: Path, line: bytes) -> None:
    hello = b'{"ev":"hello","pid":1,"ready":true,"versions":{"task_sdk":"1"},"jobs":[]}'
    server, hang_up = await scripted_runner(directory, hello, b'{"ev":"of the future"}', line)
    runner = real_runner(directory)
    assert await runner.reattach() == {}
    events = runner.events()
    assert await asyncio.wait_for(anext(events), SECONDS) == RunnerReady({"task_sdk": "1"})
    assert await asyncio.wait_for(anext(events), SECONDS) == RunnerGone(None)
    hang_up.set()
    await runner.close()
    server.close()


@pytest.mark.parametrize("jobs", ["null", "[1]", '[{"job_id":"x"}]', '[{"job_id":"x","pid":null}]'])
async def test_a_hello_that_makes_no_sense(directory: Path, jobs: str) -> None:
    server, hang_up = await scripted_runner(directory, b'{"ev":"hello","jobs":%s}' % jobs.encode())
    runner = real_runner(directory)
    assert await runner.reattach() == {}
    hang_up.set()
    await runner.close()
    server.close()


async def test_a_problem_of_the_runtime_is_passed_on(directory: Path) -> None:
    job_id = new_id()
    lines = [
        b'{"ev":"hello","pid":1,"ready":false,"versions":null,"jobs":[{"job_id":"%s","pid":7}]}' % job_id.encode(),
        b'{"ev":"problem","detail":"no Task SDK"}',
    ]
    server, hang_up = await scripted_runner(directory, *lines)
    hang_up.set()
    runner = real_runner(directory)
    assert await runner.reattach() == {job_id: 7}
    events = runner.events()
    assert await asyncio.wait_for(anext(events), SECONDS) == RunnerUnusable("no Task SDK")
    assert await asyncio.wait_for(anext(events), SECONDS) == RunnerGone("no Task SDK", frozenset({job_id}))
    await runner.close()
    server.close()


async def test_a_hang_up_seen_while_writing_is_told_as_well(directory: Path) -> None:
    first, second = new_id(), new_id()
    hello = b'{"ev":"hello","pid":1,"ready":true,"versions":{},"jobs":[{"job_id":"%s","pid":7}]}' % first.encode()
    server, hang_up = await scripted_runner(directory, hello)
    runner = real_runner(directory, python="/nonexistent/python")
    assert set(await runner.reattach()) == {first}
    connection = runner._current
    assert connection is not None
    server.close()
    (directory / "runner.sock").unlink(missing_ok=True)
    connection.writer.transport.abort()
    with pytest.raises(RunnerError):
        await runner.start(make_offer(job_id=second), SERVER)
    events = runner.events()
    assert await asyncio.wait_for(anext(events), SECONDS) == RunnerReady({})
    # The job that was not handed over is not among those lost.
    assert await asyncio.wait_for(anext(events), SECONDS) == RunnerGone(None, frozenset({first}))
    hang_up.set()
    await runner.close()


def test_signals_have_the_numbers_of_this_system() -> None:
    assert (signal.SIGTERM, signal.SIGKILL) == (15, 9)
