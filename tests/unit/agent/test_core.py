"""The agent's decisions, event by event, without clock, file or socket."""

import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from airflow_edge_agent.core.agent import AgentCore
from airflow_edge_agent.core.events import (
    Event,
    Exit,
    ForgetJob,
    FrameArrived,
    Instruction,
    JobEnded,
    JobFound,
    JobHeard,
    JobStarted,
    LinkLost,
    LinkOpened,
    LogGone,
    LogGrew,
    RuntimeChecked,
    Say,
    Send,
    ShipLog,
    SignalJob,
    StartJob,
    StopAsked,
    Tick,
)
from airflow_edge_agent.core.jobs import PHASES, AgentJob, Phase
from airflow_edge_agent.core.policy import Limits
from airflow_edge_agent.core.tasks import TaskKey
from airflow_edge_agent.protocol import frames as f
from airflow_edge_agent.protocol.jobs import Outcome
from airflow_edge_agent.protocol.states import AgentState, IllegalTransition


def welcome(**changes: Any) -> f.Welcome:
    values: dict[str, Any] = {
        "protocol": 1,
        "session_id": str(uuid.uuid4()),
        "server_version": "0.1.0",
        "airflow_version": "3.3.2",
        "server_time": datetime.now(UTC),
        "intervals": f.Intervals(),
    }
    return f.Welcome(**(values | changes))


def offer(slots: int = 1, fence: int = 1, job_id: str | None = None, lease_seconds: float = 10) -> f.Offer:
    return f.Offer(
        job_id=job_id or str(uuid.uuid4()),
        fence=fence,
        kind="task",
        slots=slots,
        queue="default",
        lease_seconds=lease_seconds,
        label="dag.task",
        token="secret",
        workload={},
    )


class Driver:
    """Feeds a core and remembers what it wanted."""

    def __init__(self, **limits: Any) -> None:
        values: dict[str, Any] = {"concurrency": 2, "kill_grace_seconds": 5, "drain_deadline_seconds": 0}
        self.core = AgentCore(Limits(**(values | limits)))
        self.now = 100.0

    def feed(self, event: Event, at: float | None = None) -> list[Instruction]:
        if at is not None:
            self.now = at
        return self.core.handle(event, self.now)

    def state(self) -> AgentState:
        return self.core.state

    def frame(self, frame: f.ServerFrame) -> list[Instruction]:
        return self.feed(FrameArrived(frame))

    def connect(self, **changes: Any) -> list[Instruction]:
        return self.feed(LinkOpened(welcome(**changes)))

    def run_job(self, **kwargs: Any) -> f.Offer:
        """Bring a job to phase RUNNING."""
        job = offer(**kwargs)
        self.frame(job)
        self.frame(f.AcceptAck(job_id=job.job_id, fence=job.fence))
        self.feed(JobStarted(job.job_id, 4711))
        return job


def sent(instructions: list[Instruction], kind: type[Any]) -> list[Any]:
    return [i.frame for i in instructions if isinstance(i, Send) and isinstance(i.frame, kind)]


def of(instructions: list[Instruction], kind: type[Any]) -> list[Any]:
    return [i for i in instructions if isinstance(i, kind)]


@pytest.fixture
def driver() -> Driver:
    driver = Driver()
    driver.connect()
    return driver


def test_connecting_makes_it_idle_and_says_so() -> None:
    driver = Driver()
    (status,) = sent(driver.connect(), f.Status)
    assert (status.state, status.slots_total, status.slots_used) == (AgentState.IDLE, 2, 0)


def test_a_job_from_offer_to_oblivion(driver: Driver) -> None:
    job = offer()
    assert sent(driver.frame(job), f.Accept) == [f.Accept(job_id=job.job_id, fence=1)]
    assert driver.state() is AgentState.RUNNING
    assert of(driver.frame(f.AcceptAck(job_id=job.job_id, fence=1)), StartJob) == [StartJob(job)]
    (started,) = sent(driver.feed(JobStarted(job.job_id, 42)), f.Started)
    assert started.pid == 42
    assert of(driver.feed(LogGrew(job.job_id, 10)), ShipLog) == [ShipLog(job.job_id, 0, 10)]
    out = driver.feed(JobEnded(job.job_id, Outcome.FINISHED, 0, log_bytes=25))
    (result,) = sent(out, f.Result)
    assert (result.outcome, result.log_bytes) == (Outcome.FINISHED, 25)
    assert driver.state() is AgentState.IDLE
    assert of(driver.frame(f.LogAck(job_id=job.job_id, next_offset=10)), ShipLog) == [ShipLog(job.job_id, 10, 15)]
    assert not of(driver.frame(f.ResultAck(job_id=job.job_id, fence=1)), ForgetJob)
    assert of(driver.frame(f.LogAck(job_id=job.job_id, next_offset=25)), ForgetJob) == [ForgetJob(job.job_id)]
    assert driver.core.jobs == {}


def test_nothing_starts_before_the_server_confirms(driver: Driver) -> None:
    job = offer(lease_seconds=10)
    assert not of(driver.frame(job), StartJob)
    out = driver.feed(Tick(), at=driver.now + 10.1)
    assert not of(out, StartJob)
    assert not of(driver.frame(f.AcceptAck(job_id=job.job_id, fence=1)), StartJob)
    assert driver.core.slots_used == 0


def test_a_confirmation_with_another_fence_starts_nothing(driver: Driver) -> None:
    job = offer(fence=3)
    driver.frame(job)
    assert not of(driver.frame(f.AcceptAck(job_id=job.job_id, fence=2)), StartJob)


def test_the_same_offer_twice_is_accepted_once(driver: Driver) -> None:
    job = offer()
    driver.frame(job)
    assert not sent(driver.frame(job), f.Accept)
    assert driver.core.slots_used == 1


def test_a_new_offer_of_a_job_still_held_is_refused(driver: Driver) -> None:
    job = driver.run_job()
    (refused,) = sent(driver.frame(offer(job_id=job.job_id, fence=2)), f.Refuse)
    assert refused.fence == 2
    assert "earlier offer" in refused.reason


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda d: d.run_job(slots=2), "0 slots free"),
        (lambda d: d.frame(f.Maintenance(on=True)), "maintenance"),
        (lambda d: d.feed(RuntimeChecked("no Task SDK")), "no Task SDK"),
        (lambda d: (d.run_job(), d.feed(StopAsked("SIGTERM"))), "shutting down"),
    ],
)
def test_reasons_to_refuse(driver: Driver, prepare: Any, words: str) -> None:
    prepare(driver)
    out = driver.frame(offer())
    assert not sent(out, f.Accept)
    assert words in sent(out, f.Refuse)[0].reason


def test_slots_are_free_as_soon_as_the_processes_are_gone(driver: Driver) -> None:
    job = driver.run_job(slots=2)
    driver.feed(LinkLost("cut"))
    driver.feed(JobEnded(job.job_id, Outcome.FINISHED, 0))
    assert driver.core.slots_used == 0
    assert driver.core.undelivered == 1


def test_results_and_starts_are_told_again_after_a_broken_link(driver: Driver) -> None:
    ended, running = driver.run_job(), driver.run_job()
    driver.feed(LinkLost("cut"))
    driver.feed(JobEnded(ended.job_id, Outcome.FAILED, 1, "boom", 7))
    assert {(h.job_id, h.phase) for h in driver.core.held_jobs()} == {
        (ended.job_id, "finished"),
        (running.job_id, "running"),
    }
    out = driver.connect()
    assert [r.job_id for r in sent(out, f.Result)] == [ended.job_id]
    assert [s.job_id for s in sent(out, f.Started)] == [running.job_id]
    assert ShipLog(ended.job_id, 0, 7) in out


def test_an_unconfirmed_accept_is_dropped_with_the_link(driver: Driver) -> None:
    driver.frame(offer())
    driver.feed(LinkLost("cut"))
    assert driver.core.held_jobs() == []
    assert driver.core.slots_used == 0


def test_log_is_shipped_one_piece_at_a_time(driver: Driver) -> None:
    job = driver.run_job()
    size = f.MAX_LOG_CHUNK_BYTES + 5
    assert of(driver.feed(LogGrew(job.job_id, size)), ShipLog) == [ShipLog(job.job_id, 0, f.MAX_LOG_CHUNK_BYTES)]
    assert not of(driver.feed(LogGrew(job.job_id, size + 1)), ShipLog)
    out = driver.frame(f.LogAck(job_id=job.job_id, next_offset=f.MAX_LOG_CHUNK_BYTES))
    assert of(out, ShipLog) == [ShipLog(job.job_id, f.MAX_LOG_CHUNK_BYTES, 6)]


def test_the_server_may_ask_for_an_earlier_piece_again(driver: Driver) -> None:
    job = driver.run_job()
    driver.feed(LogGrew(job.job_id, 100))
    driver.frame(f.LogAck(job_id=job.job_id, next_offset=100))
    out = driver.frame(f.LogAck(job_id=job.job_id, next_offset=40))
    assert of(out, ShipLog) == [ShipLog(job.job_id, 40, 60)]


def test_a_log_that_is_gone_does_not_hold_the_job(driver: Driver) -> None:
    job = driver.run_job()
    driver.feed(JobEnded(job.job_id, Outcome.FINISHED, 0, log_bytes=50))
    driver.frame(f.ResultAck(job_id=job.job_id, fence=1))
    assert ForgetJob(job.job_id) in driver.feed(LogGone(job.job_id))


def test_cancel_asks_then_kills_then_reports_the_reason(driver: Driver) -> None:
    job = driver.run_job()
    cancel = f.Cancel(job_id=job.job_id, fence=1, reason="cleared in the UI")
    assert of(driver.frame(cancel), SignalJob) == [SignalJob(job.job_id, "TERM")]
    assert not of(driver.frame(cancel), SignalJob)
    assert not of(driver.feed(Tick(), at=driver.now + 4.9), SignalJob)
    assert of(driver.feed(Tick(), at=driver.now + 0.2), SignalJob) == [SignalJob(job.job_id, "KILL")]
    (result,) = sent(driver.feed(JobEnded(job.job_id, Outcome.KILLED, -9)), f.Result)
    assert result.detail == "cleared in the UI"


def test_cancel_before_the_start_just_drops_it(driver: Driver) -> None:
    job = offer()
    driver.frame(job)
    out = driver.frame(f.Cancel(job_id=job.job_id, fence=1, reason="too late"))
    assert [(r.outcome, r.detail) for r in sent(out, f.Result)] == [(Outcome.KILLED, "too late")]
    assert driver.core.jobs == {}


def test_cancel_of_a_job_not_held_is_answered(driver: Driver) -> None:
    ghost = str(uuid.uuid4())
    (result,) = sent(driver.frame(f.Cancel(job_id=ghost, fence=4, reason="x")), f.Result)
    assert (result.job_id, result.fence, result.outcome) == (ghost, 4, Outcome.KILLED)


def test_cancel_with_an_old_fence_is_ignored(driver: Driver) -> None:
    job = driver.run_job(fence=2)
    assert not of(driver.frame(f.Cancel(job_id=job.job_id, fence=1, reason="x")), SignalJob)


def test_maintenance_and_back(driver: Driver) -> None:
    job = driver.run_job()
    driver.frame(f.Maintenance(on=True, comment="new disk"))
    assert driver.state() is AgentState.MAINTENANCE_PENDING
    driver.feed(JobEnded(job.job_id, Outcome.FINISHED, 0))
    assert driver.state() is AgentState.MAINTENANCE_MODE
    driver.frame(f.Maintenance(on=False))
    assert driver.state() is AgentState.IDLE


def test_maintenance_asked_for_in_the_welcome() -> None:
    driver = Driver()
    driver.connect(maintenance=True)
    assert driver.state() is AgentState.MAINTENANCE_MODE


def test_drain_waits_for_jobs_then_says_goodbye(driver: Driver) -> None:
    job = driver.run_job()
    out = driver.feed(StopAsked("SIGTERM"))
    assert not of(out, Exit)
    assert driver.state() is AgentState.TERMINATING
    driver.feed(JobEnded(job.job_id, Outcome.FINISHED, 0))
    out = driver.frame(f.ResultAck(job_id=job.job_id, fence=1))
    if not of(out, Exit):
        out = driver.feed(Tick())
    assert of(out, Exit) == [Exit(0, "SIGTERM")]
    (goodbye,) = sent(out, f.Goodbye)
    assert goodbye.state is AgentState.OFFLINE


def test_an_idle_agent_leaves_at_once(driver: Driver) -> None:
    assert of(driver.feed(StopAsked("SIGINT")), Exit) == [Exit(0, "SIGINT")]


def test_a_stop_in_maintenance_is_remembered_as_such(driver: Driver) -> None:
    driver.frame(f.Maintenance(on=True))
    (goodbye,) = sent(driver.feed(StopAsked("SIGTERM")), f.Goodbye)
    assert goodbye.state is AgentState.OFFLINE_MAINTENANCE


def test_the_second_signal_ends_the_jobs(driver: Driver) -> None:
    job = driver.run_job()
    driver.feed(StopAsked("SIGTERM"))
    assert of(driver.feed(StopAsked("SIGTERM")), SignalJob) == [SignalJob(job.job_id, "TERM")]
    assert of(driver.feed(Tick(), at=driver.now + 5), SignalJob) == [SignalJob(job.job_id, "KILL")]


def test_the_drain_deadline_ends_the_jobs() -> None:
    driver = Driver(drain_deadline_seconds=30)
    driver.connect()
    job = driver.run_job()
    driver.feed(StopAsked("SIGTERM"))
    assert not of(driver.feed(Tick(), at=driver.now + 29), SignalJob)
    assert of(driver.feed(Tick(), at=driver.now + 1), SignalJob) == [SignalJob(job.job_id, "TERM")]
    assert not of(driver.feed(Tick(), at=driver.now + 1), SignalJob)


def test_a_stop_without_the_server_keeps_the_results_on_disk(driver: Driver) -> None:
    job = driver.run_job()
    driver.feed(LinkLost("cut"))
    driver.feed(StopAsked("SIGTERM"))
    assert not of(driver.feed(JobEnded(job.job_id, Outcome.FINISHED, 0)), Exit)
    out = driver.feed(Tick(), at=driver.now + 10)
    assert of(out, Exit)
    assert not of(out, ForgetJob)


@pytest.mark.parametrize(("code", "exit_code"), [("superseded", 75), ("protocol_mismatch", 76), ("name_mismatch", 77)])
def test_closes_that_end_the_agent(driver: Driver, code: Any, exit_code: int) -> None:
    assert of(driver.frame(f.Close(code=code, message="m")), Exit) == [Exit(exit_code, "m")]


def test_a_name_in_use_is_asked_for_a_while() -> None:
    driver = Driver()
    close = f.Close(code="name_in_use", message="taken by b")
    assert not of(driver.frame(close), Exit)
    driver.now += 59
    assert not of(driver.frame(close), Exit)
    driver.now += 2
    assert of(driver.frame(close), Exit) == [Exit(75, "taken by b")]


@pytest.mark.parametrize("code", ["session_unknown", "bad_frame"])
def test_closes_after_which_it_connects_again(driver: Driver, code: Any) -> None:
    assert not of(driver.frame(f.Close(code=code, message="m")), Exit)


def test_jobs_found_on_disk() -> None:
    driver = Driver()
    running, ended = str(uuid.uuid4()), str(uuid.uuid4())
    driver.feed(JobFound(running, 2, 1, "a", pid=7))
    driver.feed(JobFound(ended, 3, 1, "b", ended=JobEnded(ended, Outcome.LOST, detail="the host rebooted")))
    assert driver.core.slots_used == 1
    out = driver.connect()
    assert [(r.job_id, r.fence, r.outcome) for r in sent(out, f.Result)] == [(ended, 3, Outcome.LOST)]
    assert [s.pid for s in sent(out, f.Started)] == [7]
    assert driver.state() is AgentState.RUNNING


def test_frames_for_jobs_unknown_here_change_nothing(driver: Driver) -> None:
    before = driver.core.status()
    ghost = str(uuid.uuid4())
    for frame in (
        f.ResultAck(job_id=ghost, fence=1),
        f.LogAck(job_id=ghost, next_offset=5),
    ):
        assert driver.frame(frame) == []
    assert driver.feed(JobEnded(ghost, Outcome.FINISHED)) == []
    assert driver.core.status() == before


def test_a_confirmation_that_comes_too_late_gives_the_job_back(driver: Driver) -> None:
    job = offer(lease_seconds=10)
    driver.frame(job)
    driver.feed(Tick(), at=driver.now + 10.1)
    out = driver.frame(f.AcceptAck(job_id=job.job_id, fence=1))
    assert not of(out, StartJob)
    (result,) = sent(out, f.Result)
    assert (result.job_id, result.fence, result.outcome) == (job.job_id, 1, Outcome.NOT_STARTED)


def test_goodbye_is_said_once(driver: Driver) -> None:
    assert sent(driver.feed(StopAsked("SIGTERM")), f.Goodbye)
    assert driver.feed(Tick(), at=driver.now + 1) == []


def test_what_the_runner_says_at_length_is_cut(driver: Driver) -> None:
    job = driver.run_job()
    (result,) = sent(driver.feed(JobEnded(job.job_id, Outcome.FAILED, 1, "d" * 10_000)), f.Result)
    assert result.detail == "d" * 2_000
    (status,) = sent(driver.feed(RuntimeChecked("p" * 10_000)), f.Status)
    assert status.problem == "p" * 2_000
    assert sent(driver.frame(offer()), f.Refuse)


def test_an_agent_holds_no_more_jobs_than_a_hello_can_list() -> None:
    driver = Driver()
    for _ in range(f.MAX_JOBS):
        ghost = str(uuid.uuid4())
        driver.feed(JobFound(ghost, 1, 1, "x", ended=JobEnded(ghost, Outcome.LOST)))
    driver.connect()
    (refused,) = sent(driver.frame(offer()), f.Refuse)
    assert "1000 jobs" in refused.reason


def test_an_unknown_frame_is_logged_and_harmless(driver: Driver) -> None:
    (said,) = of(driver.frame(f.UnknownFrame(frame_type="future")), Say)
    assert "future" in said.message


def test_status_is_sent_only_when_it_changes(driver: Driver) -> None:
    assert not sent(driver.feed(Tick()), f.Status)
    assert len(sent(driver.frame(offer()), f.Status)) == 1
    assert not sent(driver.feed(Tick()), f.Status)


def test_the_token_is_forgotten_once_the_job_runs(driver: Driver) -> None:
    job = driver.run_job()
    assert driver.core.jobs[job.job_id].offer is None
    assert "secret" not in repr(driver.core.jobs)


def test_every_phase_change() -> None:
    for phase in Phase:
        for target in Phase:
            job = AgentJob(job_id="j", fence=1, slots=1, label="l", phase=phase)
            if target in PHASES[phase]:
                job.move(target)
                assert job.phase is target
            else:
                with pytest.raises(IllegalTransition):
                    job.move(target)


def adopted(job: f.Offer) -> f.AcceptAck:
    return f.AcceptAck(job_id=job.job_id, fence=job.fence + 2, held_fence=job.fence)


def test_a_running_job_goes_on_under_the_fence_that_the_server_gives_it(driver: Driver) -> None:
    job = driver.run_job()
    (started,) = sent(driver.frame(adopted(job)), f.Started)
    assert (started.fence, started.pid) == (3, 4711)
    assert not of(driver.frame(f.Cancel(job_id=job.job_id, fence=1, reason="late")), SignalJob)
    assert sent(driver.frame(adopted(job)), f.Started) == [], "the same twice"
    assert of(driver.frame(f.Cancel(job_id=job.job_id, fence=3, reason="now")), SignalJob)
    assert [held.fence for held in driver.core.held_jobs()] == [3]


def test_the_end_of_an_adopted_job_is_told_under_its_new_fence(driver: Driver) -> None:
    job = driver.run_job()
    driver.feed(JobEnded(job.job_id, Outcome.FINISHED, 0, log_bytes=10))
    driver.frame(f.ResultAck(job_id=job.job_id, fence=1))
    (held,) = driver.core.held_jobs()
    assert (held.phase, held.outcome) == ("finished", Outcome.FINISHED)
    (result,) = sent(driver.frame(adopted(job)), f.Result)
    assert result.fence == 3
    driver.frame(f.LogAck(job_id=job.job_id, next_offset=10))
    assert driver.core.undelivered == 1, "what was acknowledged before, nobody has listened to"
    assert of(driver.frame(f.ResultAck(job_id=job.job_id, fence=3)), ForgetJob)


def test_a_job_that_has_not_begun_begins_under_its_new_fence(driver: Driver) -> None:
    job = offer()
    driver.frame(job)
    driver.frame(f.AcceptAck(job_id=job.job_id, fence=1))
    assert sent(driver.frame(adopted(job)), f.Started) == []
    (started,) = sent(driver.feed(JobStarted(job.job_id, 42)), f.Started)
    assert started.fence == 3


def test_only_what_is_held_can_be_adopted(driver: Driver) -> None:
    job = offer()
    assert driver.frame(adopted(job)) == []
    driver.frame(job)
    assert not of(driver.frame(adopted(job)), StartJob)
    assert driver.core.jobs[job.job_id].fence == 1


def test_each_change_of_the_status_has_a_greater_number(driver: Driver) -> None:
    first = driver.core.status()
    assert driver.core.status() == first
    job = driver.run_job()
    second = driver.core.status()
    assert second.sequence > first.sequence
    assert driver.core.status() == second
    driver.feed(LinkLost("cut"))
    (again,) = sent(driver.connect(), f.Status)
    assert again.sequence == second.sequence, "the same is said again"
    driver.feed(JobEnded(job.job_id, Outcome.FINISHED, 0))
    assert driver.core.status().sequence > second.sequence


# --- The disconnect lease ---------------------------------------------------------------------------------------------


def leased(driver: Driver, *, task: bool = True) -> str:
    """Bring a job with a disconnect lease of 60 s to phase RUNNING at 100 s."""
    values: dict[str, Any] = {"disconnect_lease_seconds": 60, "token": ""}
    if task:
        ti = {"id": str(uuid.uuid4()), "dag_id": "d", "task_id": "t", "run_id": "r", "try_number": 1, "map_index": -1}
        values["workload"] = {"ti": ti}
    job = offer().model_copy(update=values)
    driver.frame(job)
    driver.frame(f.AcceptAck(job_id=job.job_id, fence=1))
    driver.feed(JobStarted(job.job_id, 4711))
    assert (driver.core.jobs[job.job_id].task is not None) is task
    return job.job_id


def test_a_task_is_ended_when_the_lease_is_over(driver: Driver) -> None:
    job_id = leased(driver)
    driver.feed(JobHeard(job_id), at=110)
    driver.feed(LinkLost("cut"), at=150)
    assert not of(driver.feed(Tick(), at=169.9), SignalJob), "the lease began when the server last answered the job"
    out = driver.feed(Tick(), at=170)
    assert of(out, SignalJob) == [SignalJob(job_id, "TERM")]
    assert "disconnect lease allows, 60 s" in of(out, Say)[0].message
    assert not of(driver.feed(Tick(), at=171), SignalJob), "asked once"
    assert of(driver.feed(Tick(), at=175), SignalJob) == [SignalJob(job_id, "KILL")]


def test_a_connection_in_time_saves_it(driver: Driver) -> None:
    job_id = leased(driver)
    driver.feed(LinkLost("cut"), at=110)
    driver.now = 159
    driver.connect()
    assert not of(driver.feed(Tick(), at=500), SignalJob), "while connected, the server decides"
    driver.feed(JobHeard(job_id), at=500)
    driver.feed(LinkLost("cut"), at=500)
    assert not of(driver.feed(Tick(), at=559), SignalJob)


def test_what_need_not_ask_has_its_lease_from_the_loss_of_the_link(driver: Driver) -> None:
    job_id = leased(driver, task=False)
    driver.feed(LinkLost("cut"), at=1_000)
    assert not of(driver.feed(Tick(), at=1_059), SignalJob)
    assert of(driver.feed(Tick(), at=1_060), SignalJob) == [SignalJob(job_id, "TERM")]


def test_without_a_lease_nothing_is_ended(driver: Driver) -> None:
    driver.run_job()
    driver.feed(LinkLost("cut"))
    assert not of(driver.feed(Tick(), at=10**6), SignalJob)


def test_a_restart_does_not_begin_the_lease_anew() -> None:
    driver = Driver()
    job_id = str(uuid.uuid4())
    ti = {"id": str(uuid.uuid4()), "dag_id": "d", "task_id": "t", "run_id": "r", "try_number": 1, "map_index": -1}
    found = JobFound(
        job_id, 1, 1, "x", 42, task=TaskKey.of({"ti": ti}), disconnect_lease_seconds=60, heard_seconds_ago=50
    )
    driver.feed(found, at=100)
    assert not of(driver.feed(Tick(), at=109), SignalJob)
    assert of(driver.feed(Tick(), at=110), SignalJob) == [SignalJob(job_id, "TERM")]
