"""What operators ask for at either end, event by event."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_edge_agent.core.agent import AgentCore
from airflow_edge_agent.core.events import (
    DrainAsked,
    Event,
    Exit,
    FrameArrived,
    Instruction,
    JobEnded,
    JobStarted,
    KeepMaintenance,
    LimitsChanged,
    LinkLost,
    LinkOpened,
    MaintenanceDecided,
    MaintenanceRemembered,
    NoteInLog,
    ResumeAsked,
    Say,
    Send,
    SignalJob,
    StopAsked,
    StopPolicy,
    Tick,
)
from airflow_edge_agent.core.maintenance import MaintenanceMemory, MaintenanceRecord
from airflow_edge_agent.core.policy import Limits
from airflow_edge_agent.core.tasks import TaskKey
from airflow_edge_agent.protocol import frames as f
from airflow_edge_agent.protocol.jobs import Outcome
from airflow_edge_agent.protocol.states import AgentState
from fakes.frames import make_offer, make_welcome

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
S = AgentState


class Core:
    """A core with a clock that the test moves."""

    def __init__(self, *, connected: bool = True) -> None:
        limits = Limits(4, kill_grace_seconds=5, drain_deadline_seconds=0, queues=("default",))
        self.core = AgentCore(limits)
        self.now = 0.0
        self.out: list[Instruction] = []
        if connected:
            self.feed(LinkOpened(make_welcome()))

    def feed(self, event: Event, after: float = 0.0) -> list[Instruction]:
        self.now += after
        out = self.core.handle(event, self.now)
        self.out += out
        return out

    def run_job(self) -> str:
        offer = make_offer()
        self.feed(FrameArrived(offer))
        self.feed(FrameArrived(f.AcceptAck(job_id=offer.job_id, fence=offer.fence)))
        self.feed(JobStarted(offer.job_id, 42))
        return offer.job_id

    def sent(self, kind: type[Any]) -> list[Any]:
        return [i.frame for i in self.out if isinstance(i, Send) and isinstance(i.frame, kind)]

    def state(self) -> AgentState:
        return self.core.state

    def record(self) -> MaintenanceRecord | None:
        return self.core.maintenance.record

    def kept(self) -> list[MaintenanceMemory]:
        return [i.memory for i in self.out if isinstance(i, KeepMaintenance)]


def on(comment: str | None = "new disk", **changes: Any) -> MaintenanceDecided:
    return replace(MaintenanceDecided(on=True, by="alice", at=NOON, comment=comment), **changes)


def off(at: datetime = NOON + timedelta(hours=1)) -> MaintenanceDecided:
    return MaintenanceDecided(on=False, by="bob", at=at)


# Maintenance


def test_maintenance_asked_for_here_is_kept_and_told_before_the_state() -> None:
    agent = Core()
    out = agent.feed(on())
    frames = [i.frame for i in out if isinstance(i, Send)]
    assert [type(frame) for frame in frames] == [f.MaintenanceAsked, f.Status]
    assert (frames[0].by, frames[0].comment, frames[0].since) == ("alice", "new disk", NOON)  # type: ignore[union-attr]
    assert frames[1].state is S.MAINTENANCE_MODE  # type: ignore[union-attr]
    assert agent.kept()[-1].record == MaintenanceRecord("alice", NOON, "new disk")


def test_the_server_confirms_it_and_it_is_told_no_more() -> None:
    agent = Core()
    agent.feed(on())
    agent.feed(FrameArrived(f.Maintenance(on=True, settled=NOON)))
    assert agent.core.maintenance.untold is None
    assert agent.core.maintenance.record == MaintenanceRecord("alice", NOON, "new disk")
    agent.feed(LinkLost("x"))
    agent.feed(LinkOpened(make_welcome()))
    assert len(agent.sent(f.MaintenanceAsked)) == 1
    assert agent.state() is S.MAINTENANCE_MODE


def test_until_it_is_confirmed_it_is_told_at_each_reconnect_and_other_orders_do_not_count() -> None:
    agent = Core(connected=False)
    agent.feed(on())
    agent.feed(LinkOpened(make_welcome(maintenance=False)))
    agent.feed(FrameArrived(f.Maintenance(on=False)))
    agent.feed(LinkLost("x"))
    agent.feed(LinkOpened(make_welcome()))
    assert len(agent.sent(f.MaintenanceAsked)) == 2
    assert agent.record() is not None
    assert agent.state() is S.MAINTENANCE_MODE


def test_a_later_decision_at_the_server_wins() -> None:
    agent = Core()
    agent.feed(on())
    agent.feed(FrameArrived(f.Maintenance(on=False, settled=NOON, by="admin")))
    assert agent.state() is S.IDLE
    assert agent.core.maintenance == MaintenanceMemory()


def test_a_server_that_does_not_know_the_frame_hears_of_the_state_alone() -> None:
    agent = Core()
    agent.feed(on())
    agent.feed(FrameArrived(f.UnknownFrame(frame_type="maintenance_asked")))
    assert agent.core.maintenance.untold is None
    assert agent.state() is S.MAINTENANCE_MODE
    assert not [i for i in agent.out if isinstance(i, Say) and i.level == "warning"]


def test_maintenance_asked_for_at_the_server_shows_here() -> None:
    agent = Core()
    agent.feed(FrameArrived(f.Maintenance(on=True, by="admin", since=NOON, comment="inventory")))
    assert agent.core.maintenance.record == MaintenanceRecord("admin", NOON, "inventory", source="server")
    assert agent.sent(f.MaintenanceAsked) == []
    agent.feed(FrameArrived(f.Maintenance(on=False)))
    assert agent.record() is None
    assert agent.state() is S.IDLE


def test_a_welcome_tells_who_and_why() -> None:
    agent = Core(connected=False)
    agent.feed(
        LinkOpened(
            make_welcome(maintenance=True, maintenance_by="admin", maintenance_comment="x", maintenance_since=NOON)
        )
    )
    assert agent.core.maintenance.record == MaintenanceRecord("admin", NOON, "x", source="server")


def test_it_survives_a_restart() -> None:
    agent = Core(connected=False)
    memory = MaintenanceMemory(MaintenanceRecord("alice", NOON, "new disk"))
    agent.feed(MaintenanceRemembered(memory))
    assert agent.state() is S.MAINTENANCE_MODE
    agent.feed(LinkOpened(make_welcome()))
    assert agent.state() is S.MAINTENANCE_MODE
    assert agent.core.maintenance == memory
    assert agent.kept() == []


def test_it_waits_for_jobs_and_takes_none() -> None:
    agent = Core()
    job = agent.run_job()
    agent.feed(on())
    assert agent.state() is S.MAINTENANCE_PENDING
    refused = make_offer()
    agent.feed(FrameArrived(refused))
    assert [r.job_id for r in agent.sent(f.Refuse)] == [refused.job_id]
    agent.feed(JobEnded(job, Outcome.FINISHED))
    assert agent.state() is S.MAINTENANCE_MODE
    agent.feed(off())
    assert agent.state() is S.IDLE
    assert agent.kept()[-1].record is None
    assert [a.on for a in agent.sent(f.MaintenanceAsked)] == [True, False]


def test_asking_again_changes_comment_and_end() -> None:
    agent = Core()
    agent.feed(on())
    later = NOON + timedelta(minutes=5)
    agent.feed(on("still the disk", at=later, until=later + timedelta(hours=2)))
    record = agent.core.maintenance.record
    assert record is not None
    assert (record.comment, record.until) == ("still the disk", later + timedelta(hours=2))
    assert agent.state() is S.MAINTENANCE_MODE


def test_ending_what_is_not_changes_nothing() -> None:
    agent = Core()
    agent.feed(off())
    assert agent.sent(f.MaintenanceAsked) == []
    assert agent.kept() == []


# Drain


def test_a_drain_takes_no_jobs_until_resumed() -> None:
    agent = Core()
    job = agent.run_job()
    agent.feed(DrainAsked("alice"))
    agent.feed(FrameArrived(make_offer()))
    assert "drained by alice" in agent.sent(f.Refuse)[0].reason
    assert "drained by alice" in agent.sent(f.Status)[-1].problem
    assert agent.core.jobs[job].cancel_reason is None
    agent.feed(ResumeAsked("bob"))
    assert agent.sent(f.Status)[-1].problem is None
    agent.run_job()
    assert len(agent.core.jobs) == 2


def test_the_deadline_of_a_drain_ends_jobs_once() -> None:
    agent = Core()
    job = agent.run_job()
    agent.feed(DrainAsked("alice", 60))
    assert agent.feed(Tick(), after=59) == []
    noted, ended = agent.feed(Tick(), after=1)
    assert noted == NoteInLog(job, "the agent ends this task: the deadline of the drain by alice passed")
    assert ended == SignalJob(job, "TERM")
    agent.feed(ResumeAsked("alice"))
    second = agent.run_job()
    agent.feed(Tick(), after=100)
    assert SignalJob(second, "TERM") not in agent.out


# Limits


def test_queues_and_slots_are_told_at_once() -> None:
    agent = Core()
    agent.feed(LimitsChanged(replace(agent.core.limits, concurrency=9)))
    agent.feed(LimitsChanged(replace(agent.core.limits, queues=("default", "press"))))
    assert [(s.slots_total, s.queues) for s in agent.sent(f.Status)][-2:] == [(9, None), (9, ["default", "press"])]


def test_the_servers_word_on_slots_and_queues_counts_before_the_configuration() -> None:
    agent = Core()
    wanted = f.Controls(revision=3, slots=1, queues_added=["night"], queues_removed=["default"], drain=True)
    agent.feed(FrameArrived(wanted))
    status = agent.sent(f.Status)[-1]
    assert (status.slots_total, status.queues, status.controls) == (1, ["night"], 3)
    agent.run_job()
    agent.feed(FrameArrived(make_offer()))
    assert agent.sent(f.Refuse)[-1].reason == "0 slots free, 1 needed"
    # What somebody at the site wants meanwhile is kept, and counts when the server wants nothing more.
    agent.feed(LimitsChanged(replace(agent.core.limits, concurrency=9, queues=("default", "press"))))
    assert (agent.core.concurrency, agent.core.queues) == (1, ("press", "night"))
    agent.feed(FrameArrived(f.Controls(revision=4)))
    status = agent.sent(f.Status)[-1]
    assert (status.slots_total, status.queues, status.controls) == (9, ["default", "press"], 4)
    assert any("as the server wants it" in i.message for i in agent.out if isinstance(i, Say))


def test_a_welcome_without_controls_takes_back_what_was_wanted() -> None:
    agent = Core()
    agent.feed(FrameArrived(f.Controls(revision=1, slots=2)))
    assert agent.core.concurrency == 2
    agent.feed(LinkLost("cut"))
    assert agent.core.concurrency == 2
    agent.feed(LinkOpened(make_welcome()))
    assert agent.core.concurrency == 4
    assert agent.sent(f.Status)[-1].controls == 0


# Stop


@pytest.mark.parametrize(("policy", "ended"), [("wait", False), ("leave", False), ("end", True)])
def test_what_a_stop_does_about_jobs(policy: StopPolicy, ended: bool) -> None:  # noqa: FBT001 -- parametrised
    agent = Core()
    job = agent.run_job()
    agent.feed(StopAsked("SIGTERM", policy))
    assert (SignalJob(job, "TERM") in agent.out) is ended
    exits = [i for i in agent.out if isinstance(i, Exit)]
    assert [e.code for e in exits] == ([0] if policy == "leave" else [])
    if policy == "leave":
        assert agent.state() is S.OFFLINE
        assert agent.core.jobs[job].cancel_reason is None


def test_leaving_waits_for_what_has_not_begun_and_drops_what_was_not_confirmed() -> None:
    agent = Core()
    offer, unconfirmed = make_offer(), make_offer()
    agent.feed(FrameArrived(offer))
    agent.feed(FrameArrived(unconfirmed))
    agent.feed(FrameArrived(f.AcceptAck(job_id=offer.job_id, fence=offer.fence)))
    agent.feed(StopAsked("restart", "leave"))
    assert list(agent.core.jobs) == [offer.job_id]
    assert not [i for i in agent.out if isinstance(i, Exit)]
    agent.feed(JobStarted(offer.job_id, 42))
    assert [i.code for i in agent.out if isinstance(i, Exit)] == [0]


def test_a_second_signal_ends_what_a_first_one_waited_for() -> None:
    agent = Core()
    job = agent.run_job()
    agent.feed(StopAsked("SIGTERM"))
    agent.feed(StopAsked("SIGTERM"))
    assert SignalJob(job, "TERM") in agent.out


# Which task


def test_the_task_of_a_workload() -> None:
    ti = {"id": "0", "dag_id": "d", "task_id": "t", "run_id": "r", "try_number": 2, "map_index": -1}
    key = TaskKey.of({"ti": ti, "token": "x"})
    assert key == TaskKey("d", "t", "r", 2, -1, "0")
    assert TaskKey.of(key.told()) == key
    assert TaskKey.of({}) is None
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    traced = TaskKey.of({"ti": ti | {"context_carrier": {"traceparent": f"00-{trace}-{span}-01"}}})
    assert traced is not None
    assert (traced.trace_id, traced.span_id) == (trace, span)
    assert TaskKey.of(traced.told()) == traced
    for nonsense in (None, 7, "", f"00-{trace}-{span}", f"00-{'0' * 32}-{span}-01", f"00-{trace}-{span}-01\n"):
        assert TaskKey.of({"ti": ti | {"context_carrier": {"traceparent": nonsense}}}) == key
        assert TaskKey.of({"ti": ti | {"context_carrier": nonsense}}) == key
    assert TaskKey.of({"ti": "nonsense"}) is None
    assert TaskKey.of({"ti": {"dag_id": 7, "try_number": True, "run_id": "r" * 999}}) == TaskKey(run_id="r" * 250)
