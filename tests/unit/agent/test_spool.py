"""What is kept, what is dropped, and that a log reads the same after it, also after a restart."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_edge_agent.adapters import cuts, jobstore
from airflow_edge_agent.adapters.jobstore import DirectoryJobStore
from airflow_edge_agent.core.agent import AgentCore
from airflow_edge_agent.core.events import (
    Event,
    FrameArrived,
    Instruction,
    JobEnded,
    JobFound,
    JobStarted,
    LinkLost,
    LinkOpened,
    LogGrew,
    LogShed,
    Send,
    ShedLog,
    ShipLog,
)
from airflow_edge_agent.core.policy import Limits
from airflow_edge_agent.core.spool import Shed, Spooled, plan
from airflow_edge_agent.ports import StoreError
from airflow_edge_agent.protocol.frames import AcceptAck, LogAck, Refuse, Result, ResultAck
from airflow_edge_agent.protocol.jobs import Outcome
from fakes.frames import make_offer, make_welcome, new_id

MIB = 1024 * 1024
LIMIT = 10 * MIB


def spooled(name: str, size: int, *, finished: bool = False, acked: int = 0, sent: int = 0) -> Spooled:
    return Spooled(name, finished, size, acked, sent)


# What to drop


def test_nothing_is_dropped_below_the_limit() -> None:
    assert plan([], LIMIT) == []
    assert plan([spooled("a", 6 * MIB), spooled("b", 30 * MIB, acked=26 * MIB, sent=26 * MIB)], LIMIT) == []


def test_finished_jobs_first_then_running_ones_the_oldest_first() -> None:
    logs = [
        spooled("old running", 4 * MIB, sent=MIB),
        spooled("old finished", 4 * MIB, finished=True, sent=MIB),
        spooled("new finished", 4 * MIB, finished=True),
    ]
    assert plan(logs, LIMIT) == [Shed("old finished", MIB, 3 * MIB)]
    assert plan(logs, 4 * MIB) == [
        Shed("old finished", MIB, 3 * MIB),
        Shed("new finished", 0, 4 * MIB),
        Shed("old running", MIB, 12 * MIB - 4 * MIB * 90 // 100 - 7 * MIB),
    ]


def test_what_was_sent_is_never_dropped() -> None:
    assert plan([spooled("a", 40 * MIB, sent=40 * MIB)], LIMIT) == []
    assert plan([spooled("a", 40 * MIB, sent=40 * MIB - 100)], LIMIT) == []


# The core


class Machine:
    def __init__(self) -> None:
        self.core = AgentCore(Limits(8, kill_grace_seconds=5, drain_deadline_seconds=0, spool_bytes=LIMIT))
        self.now = 0.0
        self.feed(LinkOpened(make_welcome()))

    def feed(self, event: Event) -> list[Instruction]:
        self.now += 1
        return self.core.handle(event, self.now)

    def job(self) -> str:
        offer = make_offer()
        self.feed(FrameArrived(offer))
        self.feed(FrameArrived(AcceptAck(job_id=offer.job_id, fence=1)))
        self.feed(JobStarted(offer.job_id, 7))
        return offer.job_id


def of(kind: type[Instruction], instructions: list[Instruction]) -> list[Instruction]:
    return [instruction for instruction in instructions if isinstance(instruction, kind)]


def test_a_log_that_grows_while_the_server_is_away() -> None:
    machine = Machine()
    job = machine.job()
    (ship,) = of(ShipLog, machine.feed(LogGrew(job, 1_000)))
    assert ship == ShipLog(job, 0, 1_000)
    machine.feed(LinkLost("x"))
    (shed,) = of(ShedLog, machine.feed(LogGrew(job, 11 * MIB)))
    assert isinstance(shed, ShedLog)
    assert shed.offset == 1_000, "that much may have arrived"
    size = 11 * MIB - shed.count + 150
    assert of(ShedLog, machine.feed(LogShed(job, size))) == []
    assert machine.core.spool_problem is None
    # Back again: from where the server is, over the marker, to the end.
    (again,) = of(ShipLog, machine.feed(LinkOpened(make_welcome())))
    assert again == ShipLog(job, 0, 256 * 1024)
    machine.feed(FrameArrived(LogAck(job_id=job, next_offset=256 * 1024)))
    assert machine.core.jobs[job].log_sent == 512 * 1024


def test_a_result_tells_of_the_log_that_is_left() -> None:
    machine = Machine()
    job = machine.job()
    machine.feed(JobEnded(job, Outcome.FINISHED, 0, log_bytes=11 * MIB))
    machine.feed(FrameArrived(ResultAck(job_id=job, fence=1)))
    told = machine.feed(LogShed(job, 9 * MIB))
    (result,) = [i.frame for i in told if isinstance(i, Send) and isinstance(i.frame, Result)]
    assert result.log_bytes == 9 * MIB
    machine.feed(FrameArrived(LogAck(job_id=job, next_offset=9 * MIB)))
    assert job in machine.core.jobs, "the shorter length is not yet known"
    machine.feed(FrameArrived(ResultAck(job_id=job, fence=1)))
    assert job not in machine.core.jobs


@pytest.mark.parametrize("why", ["cannot", "already sent"])
def test_no_more_jobs_where_nothing_can_be_dropped(why: str) -> None:
    machine = Machine()
    if why == "cannot":
        job = machine.job()
        machine.feed(LinkLost("x"))
        machine.feed(LogGrew(job, 11 * MIB))
        machine.feed(LogShed(job, 0, problem="Operation not supported"))
        machine.feed(LogGrew(job, 12 * MIB))
    else:
        job = new_id()
        machine.feed(JobFound(job, 1, 1, "x", 7, log_bytes=11 * MIB))
    assert machine.core.spool_problem is not None
    assert "spool full" in machine.core.spool_problem
    assert machine.core.status().problem == machine.core.spool_problem
    machine.feed(LinkOpened(make_welcome()))
    (refusal,) = of(Send, machine.feed(FrameArrived(make_offer())))
    assert isinstance(refusal, Send)
    assert isinstance(refusal.frame, Refuse)
    assert "spool full" in refusal.frame.reason
    machine.feed(FrameArrived(LogAck(job_id=job, next_offset=11 * MIB)))
    assert machine.core.spool_problem is None


# On disk


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that is both the daemon's and the runner's."""
    path = tmp_path / "jobs"
    path.mkdir()
    return path


def blocks(store_dir: Path, job_id: str) -> int:
    return (store_dir / job_id / "task.log").stat().st_blocks * 512


def test_dropped_bytes_give_their_blocks_back(folder: Path) -> None:
    store = DirectoryJobStore(folder, folder.parent)
    offer = make_offer()
    store.add(offer, "boot")
    log = folder / offer.job_id / "task.log"
    log.write_bytes(b"x" * 99 + b"\n" + b"y" * (4 * MIB))
    before = blocks(folder, offer.job_id)
    store.shed_log(offer.job_id, 100, 3 * MIB)
    assert blocks(folder, offer.job_id) < before - 2 * MIB
    assert log.stat().st_size == 4 * MIB + 100, "a task may be appending to it"


def test_a_log_that_is_cut_in_the_middle_of_a_line(folder: Path) -> None:
    store = DirectoryJobStore(folder, folder.parent)
    offer = make_offer()
    store.add(offer, "boot")
    (folder / offer.job_id / "task.log").write_bytes(b"abcdefgh\n" * 1_000)
    store.shed_log(offer.job_id, 13, 5_000)
    first, second, marker, rest = store.read_log(offer.job_id, 0, 100_000).split(b"\n", 3)
    assert (first, second) == (b"abcdefgh", b"abcd")
    assert json.loads(marker)["level"] == "warning"
    assert rest.startswith(b"abcdefgh\n")


def test_growing_cutting_shipping_and_restarting_in_any_order(folder: Path) -> None:
    for seed in range(40):
        chance = random.Random(seed)
        store = DirectoryJobStore(folder, folder.parent)
        offer = make_offer()
        store.add(offer, "boot")
        written = 0
        shipped = b""
        for _ in range(60):
            match chance.randrange(5):
                case 0 | 1:
                    with (folder / offer.job_id / "task.log").open("ab") as log:
                        for _ in range(chance.randrange(1, 400)):
                            log.write(b"line %06d\n" % written)
                            written += 1
                case 2:
                    shipped += store.read_log(offer.job_id, len(shipped), chance.randrange(1, 3_000))
                case 3 if (left := store.log_size(offer.job_id) - len(shipped)) > 0:
                    before = store.log_size(offer.job_id)
                    after = store.shed_log(offer.job_id, len(shipped), chance.randrange(1, left + 1))
                    assert after == store.log_size(offer.job_id) <= before + 300
                case 4:
                    store = DirectoryJobStore(folder, folder.parent)
        shipped += store.read_log(offer.job_id, len(shipped), 10**9)
        assert len(shipped) == store.log_size(offer.job_id)
        assert shipped == store.read_log(offer.job_id, 0, 10**9), "what was sent stays what it was"
        numbers = []
        for line in shipped.split(b"\n"):
            if line.startswith(b"line ") and len(line) == 11:
                numbers.append(int(line[5:]))
            else:
                assert line in b"line" or line.startswith((b"{", b"line ")), (seed, line)
        assert numbers == sorted(set(numbers))
        assert b"\0" not in shipped


def test_a_file_system_that_cannot_do_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(cuts, "_punch", refuse)
    store = DirectoryJobStore(folder, folder.parent)
    offer = make_offer()
    store.add(offer, "boot")
    (folder / offer.job_id / "task.log").write_bytes(b"x" * 10_000)
    with pytest.raises(StoreError, match="Operation not supported"):
        store.shed_log(offer.job_id, 0, 9_000)
    assert store.read_log(offer.job_id, 0, 20_000) == b"x" * 10_000


def no_room(*_: object, **__: object) -> None:
    raise OSError(28, os.strerror(28))


@pytest.mark.parametrize(
    "use",
    [
        lambda store, job: store.shed_log(job, 0, 9_000),
        lambda store, job: store.add(make_offer(), "boot"),
    ],
)
def test_a_full_disk_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[DirectoryJobStore, str], object]
) -> None:
    store = DirectoryJobStore(folder, folder.parent)
    offer = make_offer()
    store.add(offer, "boot")
    (folder / offer.job_id / "task.log").write_bytes(b"x" * 10_000)
    monkeypatch.setattr(cuts, "write_atomically", no_room)
    monkeypatch.setattr(jobstore, "write_atomically", no_room)
    with pytest.raises(StoreError, match="No space left on device"):
        use(store, offer.job_id)
    assert store.read_log(offer.job_id, 0, 20_000) == b"x" * 10_000


def test_a_full_disk_is_seen_before_a_job_is_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryJobStore(folder, folder.parent)
    assert store.check() is None
    monkeypatch.setattr(Path, "write_bytes", no_room)
    assert store.check() == f"{folder}: No space left on device"


# After a restart


def found(machine: Machine, *, size: int, sent: int | None = None) -> tuple[str, list[Instruction]]:
    job = new_id()
    return job, machine.feed(JobFound(job, 1, 1, "x", 7, log_bytes=size, log_sent=sent))


def test_what_the_server_says_at_the_hello_frees_the_rest() -> None:
    machine = Machine()
    machine.feed(LinkLost("x"))
    job, out = found(machine, size=11 * MIB)
    assert of(ShedLog, out) == [], "all of it may have been sent"
    machine.feed(LinkOpened(make_welcome()))
    (shed,) = of(ShedLog, machine.feed(FrameArrived(LogAck(job_id=job, next_offset=1_000))))
    assert isinstance(shed, ShedLog)
    assert shed.offset == 1_000 + 256 * 1024, "what was sent meanwhile is on its way"
    # Only the answer to the hello tells that: a later one may be an old one that comes again.
    machine.feed(LogShed(job, 9 * MIB))
    machine.feed(FrameArrived(LogAck(job_id=job, next_offset=0)))
    assert machine.core.jobs[job].log_sent > 256 * 1024


def test_a_note_on_disk_frees_the_rest_while_the_server_is_away() -> None:
    machine = Machine()
    machine.feed(LinkLost("x"))
    job, out = found(machine, size=11 * MIB, sent=5_000)
    (shed,) = of(ShedLog, out)
    assert isinstance(shed, ShedLog)
    assert (shed.job_id, shed.offset) == (job, 5_000)


def test_a_note_survives_a_restart_until_it_is_not_true_any_more(folder: Path) -> None:
    store = DirectoryJobStore(folder, folder.parent)
    offer = make_offer()
    store.add(offer, "boot")
    assert store.sent(offer.job_id) is None
    store.note_sent(offer.job_id, 5_000)
    store = DirectoryJobStore(folder, folder.parent)
    assert store.sent(offer.job_id) == 5_000
    store.sending(offer.job_id, 5_000)
    assert store.sent(offer.job_id) == 5_000
    store.sending(offer.job_id, 5_001)
    assert store.sent(offer.job_id) is None
    assert DirectoryJobStore(folder, folder.parent).sent(offer.job_id) is None


def test_without_room_for_a_note_there_is_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryJobStore(folder, folder.parent)
    offer = make_offer()
    store.add(offer, "boot")
    monkeypatch.setattr(jobstore, "write_atomically", no_room)
    store.note_sent(offer.job_id, 5_000)
    assert store.sent(offer.job_id) is None
    (folder / offer.job_id / "sent.json").write_text('"damaged')
    assert DirectoryJobStore(folder, folder.parent).sent(offer.job_id) is None
