"""Answers one batch of an agent: one transaction, frames in, frames out. Knows nothing of HTTP."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.orm import Session

from airflow_edge_agent.protocol.codec import FrameError, decode_agent_frame
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
    Log,
    LogAck,
    Refuse,
    Result,
    ServerFrame,
    Started,
    Status,
    UnknownFrame,
    Welcome,
)
from airflow_edge_server.config import Settings
from airflow_edge_server.store import sessions as store
from airflow_edge_server.store.dispatch import Room, read_rooms
from airflow_edge_server.store.jobs import JobBook
from airflow_edge_server.store.transaction import Sessions, write

log = logging.getLogger(__name__)

_ABOUT_JOBS = (Accept, Refuse, Started, Result, Log)
_CHANGES_ROOM = (Status, Refuse, Result)


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


class Service:
    """Handles the batches of agents.

    :param sessions: opens sessions on the metadata database.
    :param airflow_version: for the welcome.
    """

    def __init__(
        self,
        settings: Settings,
        sessions: Sessions,
        *,
        server_version: str,
        airflow_version: str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._server_version = server_version
        self._airflow_version = airflow_version
        self._clock = clock

    def handle(self, agent_name: str, batch: Batch) -> Answer:
        """Answer a batch of the agent to which the request's token belongs.

        :raises sqlalchemy.exc.DBAPIError: when the database fails.
        """
        unknown, frames = self._decode(agent_name, batch.frames)
        if frames and isinstance(frames[0], Close):
            return Answer(batch.session_id, [frames[0]])
        given: list[AgentFrame] = [frame for frame in frames if not isinstance(frame, Close)]
        poll = batch.wait_seconds > 0
        answer = write(
            self._sessions, lambda session: self._apply(session, agent_name, batch.session_id, given, poll=poll)
        )
        answer.frames.extend(unknown)
        answer.frames, answer.later = answer.frames[:MAX_FRAMES], answer.frames[MAX_FRAMES:]
        return answer

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

    def _apply(
        self, session: Session, agent_name: str, session_id: str | None, frames: list[AgentFrame], *, poll: bool
    ) -> Answer:
        now = self._clock()
        answer = Answer(session_id)
        if frames and isinstance(frames[0], Hello):
            session_id = self._open(session, agent_name, frames[0], now, answer)
            if session_id is None:
                return answer
            frames = frames[1:]
        agent = store.find_agent(session, agent_name)
        fault = store.session_fault(agent, session_id)
        if agent is None or fault is not None:
            answer.frames = [] if fault is None else [fault]
            return answer
        store.note_contact(agent, now)
        about_jobs = [frame.job_id for frame in frames if isinstance(frame, _ABOUT_JOBS)]
        book = JobBook(session, agent_name, now, about_jobs)
        log_acks: dict[str, LogAck] = {}
        for frame in frames:
            if isinstance(frame, Status):
                store.note_status(agent, frame)
            elif isinstance(frame, Heartbeat):
                store.note_heartbeat(agent, frame, now)
            elif isinstance(frame, Goodbye):
                session.flush()
                answer.requeued |= store.close_session(session, agent, frame, now)
                log.info("Agent %s said goodbye: %s", agent_name, frame.reason)
                break
            elif isinstance(frame, Log):
                try:
                    log_acks[frame.job_id] = book.append_log(frame)
                except FrameError as error:
                    log.warning("Agent %s sent log of job %s that was skipped: %s", agent_name, frame.job_id, error)
            elif isinstance(frame, _ABOUT_JOBS):
                answer.refused |= isinstance(frame, Refuse)
                reply = _about_job(book, frame)
                if reply is not None:
                    answer.frames.append(reply)
            elif isinstance(frame, Hello):
                log.warning("Agent %s sent a hello inside of a batch; skipped.", agent_name)
        answer.frames.extend(log_acks.values())
        answer.requeued |= book.requeued
        session.flush()
        if agent.session_id is not None and (poll or any(isinstance(frame, _CHANGES_ROOM) for frame in frames)):
            answer.room = read_rooms(session, [agent_name])[agent_name]
        return answer

    def _open(self, session: Session, agent_name: str, hello: Hello, now: datetime, answer: Answer) -> str | None:
        if hello.name != agent_name:
            message = f"the token belongs to the agent {agent_name!r}, not to {hello.name!r}"
            answer.frames.append(Close(code="name_mismatch", message=message))
            return None
        opened = store.open_session(session, hello, now=now, heartbeat_seconds=self._settings.heartbeat_seconds)
        if isinstance(opened, Close):
            log.warning("Agent %s was turned away: %s", agent_name, opened.message)
            answer.frames.append(opened)
            return None
        log.info(
            "Agent %s connected from host %s, with %d job(s), for the queues %s.",
            agent_name,
            hello.hostname,
            len(hello.jobs),
            ", ".join(hello.queues),
        )
        welcome = Welcome(
            protocol=opened.protocol,
            session_id=opened.session_id,
            server_version=self._server_version,
            airflow_version=self._airflow_version,
            server_time=now,
            intervals=Intervals(heartbeat_seconds=self._settings.heartbeat_seconds),
            execution_api_url=self._settings.execution_api_url,
            maintenance=opened.maintenance,
        )
        answer.session_id = opened.session_id
        answer.frames = [welcome, *opened.reconciled]
        answer.requeued = opened.requeued
        answer.opened = True
        return opened.session_id


def _about_job(book: JobBook, frame: Accept | Refuse | Started | Result | Log) -> ServerFrame | None:
    if isinstance(frame, Accept):
        return book.accept(frame)
    if isinstance(frame, Refuse):
        return book.refuse(frame)
    if isinstance(frame, Started):
        return book.started(frame)
    return book.result(frame) if isinstance(frame, Result) else book.append_log(frame)
