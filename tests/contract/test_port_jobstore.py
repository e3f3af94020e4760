"""What every job store does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from airflow_edge_agent.adapters.jobstore import DirectoryJobStore
from airflow_edge_agent.core.events import JobEnded
from airflow_edge_agent.ports import FinalState, JobStore, KeptCall, StoredJob
from airflow_edge_agent.protocol.frames import Usage
from airflow_edge_agent.protocol.jobs import Outcome
from fakes import MemoryJobStore
from fakes.frames import make_offer, new_id


class RunnerSide(Protocol):
    """What the runner does to a job's files."""

    def runner_took(self, job_id: str) -> None: ...

    def runner_logged(self, job_id: str, data: bytes) -> None: ...

    def runner_ended(
        self, job_id: str, outcome: Outcome, exit_code: int | None, detail: str | None, usage: Usage
    ) -> None: ...


class DirectoryRunnerSide:
    def __init__(self, runner_dir: Path) -> None:
        self._jobs_dir = runner_dir / "jobs"
        self._jobs_dir.mkdir(parents=True)

    def _folder(self, job_id: str) -> Path:
        folder = self._jobs_dir / job_id
        folder.mkdir(exist_ok=True)
        return folder

    def runner_took(self, job_id: str) -> None:
        (self._folder(job_id) / "pid.json").write_text('{"pid": 1, "start_time": 2}')

    def runner_logged(self, job_id: str, data: bytes) -> None:
        with (self._folder(job_id) / "task.log").open("ab") as log:
            log.write(data)

    def runner_ended(
        self, job_id: str, outcome: Outcome, exit_code: int | None, detail: str | None, usage: Usage
    ) -> None:
        record = {
            "job_id": job_id,
            "outcome": str(outcome),
            "exit_code": exit_code,
            "detail": detail,
            "finished_at": "2026-03-01T12:00:00+00:00",
        }
        (self._folder(job_id) / "result.json").write_text(json.dumps(record | usage.model_dump()))


Sides = tuple[JobStore, RunnerSide]


@pytest.fixture(params=["directory", "memory"])
def sides(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sides]:
    if request.param == "memory":
        memory = MemoryJobStore()
        yield memory, memory
    else:
        jobs, runner = tmp_path / "own", tmp_path / "runner"
        jobs.mkdir()
        yield DirectoryJobStore(jobs, runner), DirectoryRunnerSide(runner)


USAGE = Usage(wall_seconds=1.5, cpu_seconds=0.25, peak_memory_bytes=1 << 20)


def test_a_job_that_was_added_is_loaded(sides: Sides) -> None:
    store, _ = sides
    offer = make_offer(fence=3, slots=2, label="weigh.measure [3] \N{EN DASH} run")
    store.add(offer, "boot-1")
    assert store.load() == [
        StoredJob(offer.job_id, 3, 2, offer.label, "boot-1", handed_over=False, ended=None),
    ]


def test_the_disconnect_lease_and_the_last_contact_are_remembered(sides: Sides) -> None:
    store, _ = sides
    store.add(make_offer(disconnect_lease_seconds=90.0), "boot-1")
    assert [job.disconnect_lease_seconds for job in store.load()] == [90.0]
    assert store.contact_seconds_ago() == 0
    store.note_contact()
    assert 0 <= store.contact_seconds_ago() < 60


def test_an_empty_store(sides: Sides) -> None:
    store, _ = sides
    assert store.load() == []
    assert store.ended(new_id()) is None
    assert store.log_size(new_id()) == 0
    assert store.read_log(new_id(), 0, 100) == b""
    store.forget(new_id())


def test_it_tells_whether_the_runner_has_begun(sides: Sides) -> None:
    store, runner = sides
    taken, logging, waiting = make_offer(), make_offer(), make_offer()
    for offer in (taken, logging, waiting):
        store.add(offer, "boot")
    runner.runner_took(taken.job_id)
    runner.runner_logged(logging.job_id, b"x")
    begun = {job.job_id for job in store.load() if job.handed_over}
    assert begun == {taken.job_id, logging.job_id}


@pytest.mark.parametrize("outcome", list(Outcome))
def test_a_result_is_read_back_in_full(sides: Sides, outcome: Outcome) -> None:
    store, runner = sides
    offer = make_offer()
    store.add(offer, "boot")
    runner.runner_logged(offer.job_id, b"12345")
    runner.runner_ended(offer.job_id, outcome, -9, "boom", USAGE)
    expected = JobEnded(offer.job_id, outcome, -9, "boom", 5, USAGE)
    assert store.ended(offer.job_id) == expected
    assert [job.ended for job in store.load()] == [expected]


def test_the_log_grows_and_is_read_in_pieces(sides: Sides) -> None:
    store, runner = sides
    offer = make_offer()
    store.add(offer, "boot")
    assert store.read_log(offer.job_id, 0, 10) == b""
    runner.runner_logged(offer.job_id, b"hello ")
    assert store.log_size(offer.job_id) == 6
    runner.runner_logged(offer.job_id, b"w\xff\x00rld")
    assert store.log_size(offer.job_id) == 12
    assert store.read_log(offer.job_id, 0, 100) == b"hello w\xff\x00rld"
    assert store.read_log(offer.job_id, 6, 2) == b"w\xff"
    assert store.read_log(offer.job_id, 12, 10) == b""
    assert store.read_log(offer.job_id, 500, 10) == b""


def test_a_forgotten_job_leaves_nothing(sides: Sides) -> None:
    store, runner = sides
    offer, other = make_offer(), make_offer()
    store.add(offer, "boot")
    store.add(other, "boot")
    runner.runner_logged(offer.job_id, b"x")
    runner.runner_ended(offer.job_id, Outcome.FINISHED, 0, None, USAGE)
    store.forget(offer.job_id)
    store.forget(offer.job_id)
    assert [job.job_id for job in store.load()] == [other.job_id]
    assert store.ended(offer.job_id) is None
    assert store.log_size(offer.job_id) == 0


def test_a_later_offer_of_the_same_job_starts_afresh(sides: Sides) -> None:
    store, runner = sides
    offer = make_offer()
    store.add(offer, "boot")
    runner.runner_logged(offer.job_id, b"old")
    runner.runner_ended(offer.job_id, Outcome.NOT_STARTED, None, None, USAGE)
    store.add(offer.model_copy(update={"fence": 2}), "boot")
    (job,) = store.load()
    assert (job.fence, job.handed_over, job.ended) == (2, False, None)
    assert store.log_size(offer.job_id) == 0


LINES = b"".join(b'{"event": "line %05d"}\n' % number for number in range(2_000))


def test_a_part_of_a_log_is_dropped_and_a_marker_takes_its_place(sides: Sides) -> None:
    store, runner = sides
    offer = make_offer()
    store.add(offer, "boot")
    runner.runner_logged(offer.job_id, LINES)
    at = LINES.index(b"\n", 10_000) + 1
    size = store.shed_log(offer.job_id, at, 20_000)
    assert size == store.log_size(offer.job_id) <= len(LINES) - 19_000
    runner.runner_logged(offer.job_id, b"last\n")
    log = store.read_log(offer.job_id, 0, 1_000_000)
    assert len(log) == store.log_size(offer.job_id) == size + 5
    assert log.startswith(LINES[:at])
    marker, rest = log[at:].split(b"\n", 1)
    dropped = len(LINES) + 5 - at - len(rest)
    assert f"{dropped} bytes of log were dropped" in json.loads(marker)["event"]
    assert dropped >= 20_000
    assert (LINES + b"last\n").endswith(rest)
    assert rest.startswith(b'{"event": "line')
    for offset in (0, at - 1, at, at + 5, at + len(marker), at + len(marker) + 1, size - 1, size):
        assert store.read_log(offer.job_id, offset, 777) == log[offset : offset + 777]


def test_a_store_that_has_room_says_so(sides: Sides) -> None:
    store, _ = sides
    assert store.check() is None
    assert store.load() == []


def test_what_was_sent_of_a_log_is_noted_until_more_is_sent(sides: Sides) -> None:
    store, _ = sides
    offer = make_offer()
    store.add(offer, "boot-1")
    assert store.sent(offer.job_id) is None
    store.note_sent(offer.job_id, 300)
    store.sending(offer.job_id, 300)
    assert store.sent(offer.job_id) == 300
    store.sending(offer.job_id, 301)
    assert store.sent(offer.job_id) is None
    assert store.sent(new_id()) is None


def test_a_final_state_is_kept_until_it_is_dropped(sides: Sides) -> None:
    store, _ = sides
    offer = make_offer()
    store.add(offer, "boot-1")
    assert (store.has_final(offer.job_id), store.final(offer.job_id)) == (False, None)
    body = b'{"state": "deferred"}'
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    final = FinalState(f"task-instances/{new_id()}/state".encode(), headers, body, 12.5)
    store.keep_final(offer.job_id, final)
    assert store.has_final(offer.job_id)
    assert store.final(offer.job_id) == final
    store.drop_final(offer.job_id)
    assert not store.has_final(offer.job_id)
    store.drop_final(offer.job_id)
    store.keep_final(offer.job_id, final)
    store.add(offer, "boot-1")
    assert not store.has_final(offer.job_id), "an earlier dispatch's"


def test_rendered_fields_are_kept_until_they_are_dropped(sides: Sides) -> None:
    store, _ = sides
    offer = make_offer()
    store.add(offer, "boot-1")
    assert (store.has_rendered(offer.job_id), store.rendered(offer.job_id)) == (False, None)
    for body in (b'{"command": "true"}', b'{"command": "false"}'):
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        call = KeptCall(f"task-instances/{new_id()}/rtif".encode(), headers, body, 12.5)
        store.keep_rendered(offer.job_id, call)
        assert store.has_rendered(offer.job_id)
        assert store.rendered(offer.job_id) == call
    assert not store.has_final(offer.job_id)
    store.drop_rendered(offer.job_id)
    assert not store.has_rendered(offer.job_id)
    store.drop_rendered(offer.job_id)
    store.keep_rendered(offer.job_id, call)
    store.add(offer, "boot-1")
    assert not store.has_rendered(offer.job_id), "an earlier dispatch's"


def test_the_agents_own_word_on_the_end_counts(sides: Sides) -> None:
    store, runner = sides
    offer = make_offer()
    store.add(offer, "boot-1")
    runner.runner_ended(offer.job_id, Outcome.FINISHED, 0, None, USAGE)
    ended = store.ended(offer.job_id)
    assert ended is not None
    store.record_end(JobEnded(offer.job_id, Outcome.SUPERSEDED, 0, "decided otherwise", usage=ended.usage))
    assert store.ended(offer.job_id) == JobEnded(offer.job_id, Outcome.SUPERSEDED, 0, "decided otherwise", 0, USAGE)


def test_a_line_of_the_agents_own_goes_behind_the_log(sides: Sides) -> None:
    store, runner = sides
    offer = make_offer()
    store.add(offer, "boot-1")
    assert store.append_log(offer.job_id, "nowhere") == 0
    runner.runner_logged(offer.job_id, b'{"event": "hello"}\n')
    size = store.append_log(offer.job_id, "the agent ends this task")
    assert size == store.log_size(offer.job_id)
    first, second = store.read_log(offer.job_id, 0, 10_000).splitlines()
    assert first == b'{"event": "hello"}'
    assert json.loads(second)["event"] == "the agent ends this task"
