"""Answers one batch of an agent: one transaction, frames in, frames out. Knows nothing of HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy.orm import Session

from airflow_edge_agent.protocol.codec import FrameError, decode_agent_frame
from airflow_edge_agent.protocol.enrolment import permitted
from airflow_edge_agent.protocol.frames import (
    MAX_FRAMES,
    Accept,
    AgentFrame,
    Batch,
    Close,
    Goodbye,
    Heartbeat,
    Hello,
    Intervals,
    KeyStored,
    Log,
    LogAck,
    MaintenanceAsked,
    NewKey,
    Refuse,
    Result,
    ServerFrame,
    Started,
    Status,
    TaskMetrics,
    UnknownFrame,
    Welcome,
)
from airflow_edge_server import plainly
from airflow_edge_server.api.auth import Caller, possesses
from airflow_edge_server.api.task_metrics import TaskMetricsRelay
from airflow_edge_server.config import Settings
from airflow_edge_server.domain.enrolment import Machine
from airflow_edge_server.store import agents
from airflow_edge_server.store import sessions as store
from airflow_edge_server.store.bulk import store_changes
from airflow_edge_server.store.copies import note_copy
from airflow_edge_server.store.dispatch import Room, read_rooms
from airflow_edge_server.store.enrolment import add_successor, granted_to, note_use
from airflow_edge_server.store.events import Kind, note_event
from airflow_edge_server.store.finishing import is_copy
from airflow_edge_server.store.jobs import JobBook, locked_jobs
from airflow_edge_server.store.models import EdgeAgent, EdgeAgentJob
from airflow_edge_server.store.presence import Presence, Sign
from airflow_edge_server.store.text import clean
from airflow_edge_server.store.transaction import Sessions, read, write
from airflow_edge_server.store.wakeup import Topic, announce

log = plainly.logger(__name__)

TOLD_SECONDS = 600.0
"""How often the audit log is told of the same copy of a credential."""

_MOST_TOLD = 1_000

_ABOUT_JOBS = (Accept, Refuse, Started, Result, Log)
_CHANGES_ROOM = (Status, Refuse, Result)
_SETTLES = (Accept, Refuse, Result)
_FINISHES = (*_ABOUT_JOBS, Status, Heartbeat, Goodbye)
"""What is heard of an agent that was revoked, while it finishes the jobs that it holds."""
# No sets: what an agent calls a type may be a list.
_SIGNS = ("status", "heartbeat")
_COMMON = (*_SIGNS, "accept", "refuse", "started", "result", "log")


REFUSED_QUIET_SECONDS = 600.0
"""How long an agent whose name is in use is not noted again: it asks every second."""


@dataclass(frozen=True, slots=True)
class _Way:
    """How a batch has come."""

    carrier: Literal["websocket", "http"]
    over: str | None
    """A session of that agent of which is known that nobody speaks for it any more."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What several batches in one transaction are about."""

    agents: dict[str, EdgeAgent]
    jobs: dict[str, EdgeAgentJob]
    changed: set[str] = field(default_factory=set)
    """Agents whose room may be another now."""


@dataclass(slots=True)
class Answer:
    """What a batch is answered with, and what it means for the polls that wait."""

    session_id: str | None
    frames: list[ServerFrame] = field(default_factory=list)
    later: list[ServerFrame] = field(default_factory=list)
    """What did not fit into this answer: for the next poll of that session."""
    room: Room | None = None
    """What the agent can take now; ``None``: not asked for, or its session is not open."""
    refused: bool = False
    requeued: bool = False
    """Whether a job went back to its queue."""
    opened: bool = False
    status: Status | None = None
    """What the agent said of itself, once it is in the database."""
    settled: list[str] = field(default_factory=list)
    """Jobs whose offers the agent has answered."""
    news: tuple[str, str] | None = None
    """What the audit log was told with it, and is not to be told again soon."""
    rival: str | None = None
    """The session that holds the name, if the hello was refused for it and it may be the agent before a reboot."""


class Service:
    """Handles the batches of agents.

    :param sessions: opens sessions on the metadata database.
    :param airflow_version: for the welcome.
    :param task_metrics: takes the metrics of tasks; ``None``: nobody does.
    """

    def __init__(
        self,
        settings: Settings,
        sessions: Sessions,
        *,
        server_version: str,
        airflow_version: str,
        presence: Presence | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        task_metrics: TaskMetricsRelay | None = None,
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._server_version = server_version
        self._airflow_version = airflow_version
        self._presence = Presence() if presence is None else presence
        self._clock = clock
        self._task_metrics = task_metrics
        self._told: dict[tuple[str, str], float] = {}

    def handle(self, caller: Caller, batch: Batch, over: str | None = None) -> Answer:
        """Answer a batch of the agent that the request comes from.

        :param over: a session of that agent of which is known that nobody speaks for it any more.
        :raises sqlalchemy.exc.DBAPIError: when the database fails.
        """
        return self._handle(caller, batch, poll=batch.wait_seconds > 0, known=None, way=_Way("http", over))

    def on_channel(self, caller: Caller, batch: Batch, known: Status | None, over: str | None = None) -> Answer:
        """Answer a batch that came on a standing connection.

        :param known: what the agent last said of itself there, as far as that is in the database.
        :param over: a session of that agent of which is known that nobody speaks for it any more.
        :raises sqlalchemy.exc.DBAPIError: when the database fails.
        """
        poll = bool(batch.frames) and batch.frames[0].get("type") == "hello"
        return self._handle(caller, batch, poll=poll, known=known, way=_Way("websocket", over))

    @staticmethod
    def may_join(batch: Batch) -> bool:
        """Tell whether a batch may be answered together with those of other agents."""
        return batch.session_id is not None and all(frame.get("type") in _COMMON for frame in batch.frames)

    def on_channels(self, items: Sequence[tuple[Caller, Batch, Status | None]]) -> list[Answer]:
        """Answer batches of different agents, all of which :meth:`may_join`, in one transaction.

        :raises sqlalchemy.exc.DBAPIError: when the database fails.
        """
        decoded = [
            (caller, batch, known, *self._decode(caller.agent_name, batch.frames)) for caller, batch, known in items
        ]

        def work(session: Session) -> list[Answer]:
            # As everywhere: first the agents, then the jobs, each in order, so that nobody waits for each other.
            names = sorted(caller.agent_name for caller, _, _ in items)
            wanted = {f.job_id for _, _, _, _, frames in decoded for f in frames if isinstance(f, _ABOUT_JOBS)}
            loaded = _Loaded(store.find_agents(session, names), locked_jobs(session, wanted))
            answers = []
            for caller, batch, known, unknown, frames in decoded:
                given: list[AgentFrame] = [frame for frame in frames if not isinstance(frame, Close)]
                answer = self._hears(caller.agent_name, batch.session_id or "", ([], frames), known)
                if answer is None:
                    way = _Way("websocket", None)
                    answer = self._apply(session, caller, batch.session_id, given, poll=False, way=way, loaded=loaded)
                answer.settled = [frame.job_id for frame in given if isinstance(frame, _SETTLES)]
                answer.frames.extend(unknown)
                answer.frames, answer.later = answer.frames[:MAX_FRAMES], answer.frames[MAX_FRAMES:]
                answers.append(answer)
            store_changes(session)
            rooms = read_rooms(session, sorted(loaded.changed))
            for (caller, *_), answer in zip(decoded, answers, strict=True):
                answer.room = rooms.get(caller.agent_name)
            if any(answer.requeued for answer in answers):
                announce(session, Topic.JOBS)
            return answers

        return write(self._sessions, work)

    def hears(self, caller: Caller, batch: Batch, known: Status | None) -> Answer | None:
        """Take in signs of life of an agent of which nothing has changed; ``None``: it is more than that.

        Needs no database, so it may be called where nothing may wait.
        """
        if batch.session_id is None or known is None or not all(f.get("type") in _SIGNS for f in batch.frames):
            return None
        return self._hears(caller.agent_name, batch.session_id, self._decode(caller.agent_name, batch.frames), known)

    def _hears(
        self,
        agent_name: str,
        session_id: str,
        decoded: tuple[list[ServerFrame], list[AgentFrame | Close]],
        known: Status | None,
    ) -> Answer | None:
        unknown, frames = decoded
        signs = [frame for frame in frames if isinstance(frame, Status | Heartbeat)]
        if unknown or len(signs) < len(frames) or any(f != known for f in signs if isinstance(f, Status)):
            return None
        # The dispatcher looks whether the session is still the agent's current one.
        self._note(agent_name, session_id, signs, known)
        return Answer(session_id)

    def _handle(self, caller: Caller, batch: Batch, *, poll: bool, known: Status | None, way: _Way) -> Answer:
        agent_name = caller.agent_name
        unknown, frames = self._decode(agent_name, batch.frames)
        if frames and isinstance(frames[0], Close):
            return Answer(batch.session_id, [frames[0]])
        # Told, not stored: they must not be a part of a transaction, which may be repeated.
        metrics = [frame for frame in frames if isinstance(frame, TaskMetrics)]
        given: list[AgentFrame] = [frame for frame in frames if not isinstance(frame, Close | TaskMetrics)]
        signs = [frame for frame in given if isinstance(frame, Status | Heartbeat)]
        answer = None
        if batch.session_id is not None and len(signs) == len(given):
            if way.carrier == "http":
                answer = self._hear_of(agent_name, batch.session_id, signs, poll=poll)
            else:
                answer = self._hears(agent_name, batch.session_id, ([], list(given)), known)
        if answer is None:
            answer = write(
                self._sessions,
                lambda session: self._act(session, caller, batch.session_id, given, poll=poll, way=way),
            )
            if answer.news is not None:
                self._note_told(answer.news)
        if self._task_metrics is not None and not any(isinstance(frame, Close) for frame in answer.frames):
            for told in metrics:
                self._task_metrics.tell(agent_name, told)
        answer.settled = [frame.job_id for frame in given if isinstance(frame, _SETTLES)]
        answer.frames.extend(unknown)
        answer.frames, answer.later = answer.frames[:MAX_FRAMES], answer.frames[MAX_FRAMES:]
        return answer

    def _hear_of(
        self, agent_name: str, session_id: str, signs: list[Status | Heartbeat], *, poll: bool
    ) -> Answer | None:
        """Answer an agent of which nothing has changed, without writing; ``None``: something has."""
        statuses = [frame for frame in signs if isinstance(frame, Status)]

        def look(session: Session) -> Answer | None:
            if not store.is_as_stored(session, agent_name, session_id, statuses):
                return None
            rooms = read_rooms(session, [agent_name]) if poll or statuses else {}
            return Answer(session_id, room=rooms.get(agent_name))

        answer = read(self._sessions, look)
        if answer is not None:
            self._note(agent_name, session_id, signs, statuses[-1] if statuses else None)
        return answer

    def _note(self, agent_name: str, session_id: str, signs: list[Status | Heartbeat], status: Status | None) -> None:
        """Note a sign of life; it is written with those of others."""
        sign = Sign(session_id, self._clock(), state=None if status is None else status.state)
        for frame in signs:
            if isinstance(frame, Heartbeat):
                sign.metrics = store.metrics_of(frame)
                sign.versions = sign.versions if frame.versions is None else store.versions_of(frame.versions)
        self._presence.note(agent_name, sign)

    def _decode(self, agent_name: str, raw: list[dict[str, Any]]) -> tuple[list[ServerFrame], list[AgentFrame | Close]]:
        """Decode what can be decoded; the rest is logged once per batch."""
        unknown: list[ServerFrame] = []
        frames: list[AgentFrame | Close] = []
        faults: list[str] = []
        for data in raw:
            try:
                frame = decode_agent_frame(data)
            except FrameError as error:
                faults.append(str(error))
                if data.get("type") == "hello":
                    # Without an answer of its own, an agent would wait for its welcome for ever.
                    frames.insert(0, Close(code="bad_frame", message=str(error)))
                continue
            if not isinstance(frame, UnknownFrame):
                frames.append(frame)
            elif data.get("type") == "unknown":
                log.warning("Agent %s does not understand frames of type %r.", agent_name, frame.frame_type)
            else:
                faults.append(f"unknown type {frame.frame_type!r}")
                unknown.append(UnknownFrame(frame_type=frame.frame_type))
        if faults:
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            log.warning("Agent %s sent a frame that was skipped: %s%s", agent_name, faults[0], more)
        return unknown, frames

    def _act(
        self,
        session: Session,
        caller: Caller,
        session_id: str | None,
        frames: list[AgentFrame],
        *,
        poll: bool,
        way: _Way,
    ) -> Answer:
        answer = self._apply(session, caller, session_id, frames, poll=poll, way=way)
        if answer.requeued:
            announce(session, Topic.JOBS)
        return answer

    def _apply(
        self,
        session: Session,
        caller: Caller,
        session_id: str | None,
        frames: list[AgentFrame],
        *,
        poll: bool,
        way: _Way,
        loaded: _Loaded | None = None,
    ) -> Answer:
        now = self._clock()
        answer = Answer(session_id)
        agent_name = caller.agent_name
        if frames and isinstance(frames[0], Hello):
            session_id = self._open(session, caller, frames[0], now, answer, way=way)
            if session_id is None:
                return answer
            frames = frames[1:]
        agent = store.find_agent(session, agent_name) if loaded is None else loaded.agents.get(agent_name)
        fault = store.session_fault(agent, session_id)
        if agent is None or fault is not None:
            answer.frames = [] if fault is None else [fault]
            return answer
        self._presence.note(agent_name, Sign(agent.session_id or "", now))
        revoked = agent.revoked_at is not None
        frames = [frame for frame in frames if not revoked or isinstance(frame, _FINISHES)]
        about_jobs = [frame.job_id for frame in frames if isinstance(frame, _ABOUT_JOBS)]
        book = JobBook(
            session,
            agent_name,
            now,
            about_jobs,
            log_max_bytes=self._settings.log_max_bytes,
            revoked=revoked,
            rows=None if loaded is None else loaded.jobs,
        )
        log_acks: dict[str, LogAck] = {}
        for frame in frames:
            if isinstance(frame, Status | Heartbeat):
                self._store_sign(agent, frame, now, answer)
            elif isinstance(frame, MaintenanceAsked):
                answer.frames.append(agents.note_decision(session, agent, frame, now))
            elif isinstance(frame, NewKey):
                answer.frames.extend(self._store_key(session, caller, frame, now))
            elif isinstance(frame, Goodbye):
                session.flush()
                answer.requeued |= store.close_session(session, agent, frame, now)
                log.info("Agent %s said goodbye: %s", agent_name, frame.reason)
                break
            elif isinstance(frame, Log):
                log_acks |= _append_log(book, agent_name, frame)
            elif isinstance(frame, _ABOUT_JOBS):
                answer.refused |= isinstance(frame, Refuse)
                reply = _about_job(book, frame)
                if reply is not None:
                    answer.frames.append(reply)
            else:
                log.warning("Agent %s sent a frame of type %s inside of a batch; skipped.", agent_name, frame.type)
        answer.frames.extend(log_acks.values())
        answer.requeued |= book.requeued
        asked = agent.session_id is not None and (poll or any(isinstance(frame, _CHANGES_ROOM) for frame in frames))
        if loaded is not None:
            loaded.changed.update([agent_name] if asked else [])
            return answer
        session.flush()
        if asked:
            answer.room = read_rooms(session, [agent_name])[agent_name]
        return answer

    def _store_sign(self, agent: EdgeAgent, frame: Status | Heartbeat, now: datetime, answer: Answer) -> None:
        if isinstance(frame, Status):
            store.note_status(agent, frame)
            answer.status = frame
            return
        store.note_heartbeat(agent, frame, now)
        self._presence.note(agent.name, Sign(agent.session_id or "", now, store.metrics_of(frame)))

    def _open(
        self, session: Session, caller: Caller, hello: Hello, now: datetime, answer: Answer, *, way: _Way
    ) -> str | None:
        agent_name = caller.agent_name
        if hello.name != agent_name:
            message = f"the credential belongs to the agent {agent_name!r}, not to {hello.name!r}"
            answer.frames.append(Close(code="name_mismatch", message=message))
            return None
        machine = Machine(hello.agent_id, clean(hello.boot_id), clean(hello.hostname))
        if is_copy(session, caller.credential_id, machine):
            message = f"the agent {agent_name!r} was revoked, and this is not the machine on which it finishes its jobs"
            log.warning("Agent %s was turned away at %s: %s", agent_name, machine, message)
            self._note_copy(session, caller, machine, message)
            answer.frames.append(Close(code="name_mismatch", message=message))
            return None
        opened = store.open_session(
            session,
            hello,
            now=now,
            heartbeat_seconds=self._settings.heartbeat_seconds,
            server_version=self._server_version,
            over=None if not way.over else store.Over(way.over, self._presence.last_heard(agent_name, way.over)),
            carrier=way.carrier,
            may_relay=self._settings.execution_api == "relay",
        )
        if isinstance(opened, store.Taken):
            answer.rival, opened = None if way.over is not None else opened.rival, opened.close
        if isinstance(opened, Close):
            if answer.rival is None:
                log.warning("Agent %s was turned away: %s", agent_name, opened.message)
                if opened.code == "name_in_use":
                    note_event(session, agent_name, Kind.REFUSED, opened.message, quiet_seconds=REFUSED_QUIET_SECONDS)
                    answer.news = self._note_copy(session, caller, machine, opened.message)
            answer.frames.append(opened)
            return None
        moved = note_use(session, caller.credential_id, machine, now=now)
        if moved is not None:
            log.warning(
                "The credential of agent %s is used on another machine than before: it was %s, now it is %s. If nobody "
                "has moved it, revoke the agent.",
                agent_name,
                moved.before,
                moved.now,
            )
        granted, team = granted_to(session, agent_name)
        refused = sorted(set(hello.queues) - set(permitted(hello.queues, granted)))
        if refused:
            log.warning(
                "Agent %s asks for queues that it was not granted, and gets no jobs of them: %s.",
                agent_name,
                ", ".join(refused),
            )
        log.info(
            "Agent %s connected from host %s, with %d job(s), for the queues %s.",
            agent_name,
            hello.hostname,
            len(hello.jobs),
            ", ".join(hello.queues),
        )
        comment = opened.wish.comment
        welcome = Welcome(
            protocol=opened.protocol,
            session_id=opened.session_id,
            server_version=self._server_version,
            airflow_version=self._airflow_version,
            server_time=now,
            intervals=Intervals(
                heartbeat_seconds=self._settings.heartbeat_seconds,
                reconnect_spread_seconds=self._settings.reconnect_spread_seconds,
            ),
            execution_api_url=self._settings.execution_api_url,
            maintenance=opened.maintenance,
            maintenance_comment=None if comment is None else comment[:2_000],
            maintenance_by=opened.wish.by,
            maintenance_since=opened.wish.since,
            controls=opened.controls,
            granted_queues=granted,
            team=team,
            task_metrics=self._task_metrics is not None,
        )
        answer.session_id = opened.session_id
        answer.frames = [welcome, *opened.reconciled]
        answer.requeued = opened.requeued
        answer.opened = True
        return opened.session_id

    def _store_key(self, session: Session, caller: Caller, frame: NewKey, now: datetime) -> list[ServerFrame]:
        if not possesses(frame.public_key, frame.signature, caller.credential_id):
            log.warning("Agent %s sent a new key that it does not have; skipped.", caller.agent_name)
            return []
        days = self._settings.credential_days
        stored = add_successor(session, caller.credential_id, frame.public_key, credential_days=days, now=now)
        return [] if stored is None else [KeyStored(credential_id=stored.id, public_key=stored.public_key)]

    def _note_copy(self, session: Session, caller: Caller, machine: Machine, message: str) -> tuple[str, str] | None:
        """Tell the audit log, unless it has been told lately: a clone asks again every second. Return what it is told.

        That it was is noted by whoever commits: this transaction may fail, or be run again.
        """
        what = (caller.credential_id, str(machine))
        if time.monotonic() - self._told.get(what, -TOLD_SECONDS) < TOLD_SECONDS:
            return None
        note_copy(session, caller.credential_id, caller.agent_name, message)
        return what

    def _note_told(self, what: tuple[str, str]) -> None:
        if len(self._told) >= _MOST_TOLD:
            self._told.clear()
        self._told[what] = time.monotonic()


def _append_log(book: JobBook, agent_name: str, frame: Log) -> dict[str, LogAck]:
    try:
        return {frame.job_id: book.append_log(frame)}
    except FrameError as error:
        log.warning("Agent %s sent log of job %s that was skipped: %s", agent_name, frame.job_id, error)
        return {}


def _about_job(book: JobBook, frame: Accept | Refuse | Started | Result | Log) -> ServerFrame | None:
    if isinstance(frame, Accept):
        return book.accept(frame)
    if isinstance(frame, Refuse):
        return book.refuse(frame)
    if isinstance(frame, Started):
        return book.started(frame)
    return book.result(frame) if isinstance(frame, Result) else book.append_log(frame)
