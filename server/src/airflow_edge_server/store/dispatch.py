"""Offers: what waits, who gets it, and what becomes of an offer that nobody accepts."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from airflow.models.taskinstance import TaskInstance
from pydantic import ValidationError
from sqlalchemy import Float, Result, and_, bindparam, case, func, literal, or_, select, update
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningUpdate

from airflow_edge_agent.protocol.enrolment import permitted
from airflow_edge_agent.protocol.frames import MAX_BATCH_BYTES, Offer
from airflow_edge_agent.protocol.jobs import HELD_STATES, JobEvent, JobState, Outcome, next_job_state
from airflow_edge_agent.protocol.states import AgentState
from airflow_edge_server import plainly
from airflow_edge_server.domain.agents import takes_jobs
from airflow_edge_server.domain.dispatch import Assignment, FreeAgent, QueuedJob, plan
from airflow_edge_server.domain.jobs import MAX_OFFERS
from airflow_edge_server.store.among import among
from airflow_edge_server.store.bulk import rows_of, takes_arrays
from airflow_edge_server.store.models import EdgeAgent, EdgeAgentJob
from airflow_edge_server.store.traced import traced
from airflow_edge_server.store.transaction import Sessions, locked, read, write
from airflow_edge_server.store.wakeup import Topic, announce
from airflow_edge_server.store.watch import same_task

log = plainly.logger(__name__)

MAX_CANDIDATES = 200
"""Most queued jobs looked at in one go."""

MAX_OFFERS_PER_POLL = 32

MAX_WORKLOAD_BYTES = 1024 * 1024
"""Largest workload that can be offered: an answer must hold it, and more."""

_MAX_OFFER_BYTES = MAX_BATCH_BYTES // 2

Mint = Callable[[str], str]
"""Makes the token of a workload, given the id of its task instance or callback."""


DisconnectLease = Callable[[str], float]
"""Tells for how many seconds the agent of a relayed job of a queue may be away."""


def _no_lease(_: str) -> float:
    return 0.0


class MintError(RuntimeError):
    """Airflow cannot make the token of a workload. The message says for which job, and why."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """An agent whose poll waits in this process."""

    name: str
    session_id: str
    turn: int = 0


@dataclass(frozen=True, slots=True)
class Room:
    """How much an agent can take, by its own word and by the jobs it holds."""

    session_id: str | None
    queues: frozenset[str]
    team_name: str | None
    free_slots: int
    """Zero when it is in no state to work."""
    relays: bool = False
    """Whether it relays the Execution API, so that its offers hold no token."""


@dataclass(slots=True)
class Dispatched:
    """What one round of the dispatcher brought."""

    offers: dict[str, list[Offer]] = field(default_factory=dict)
    """By agent."""
    rooms: dict[str, Room] = field(default_factory=dict)
    """Of the agents that jobs were meant for, as read for this round; empty when no job waited for anyone."""
    more: bool = False
    """Whether it is worth while to look again at once: more waits, or somebody had less room than was thought."""


def dispatch(
    sessions: Sessions,
    waiting: Sequence[Waiting],
    rooms: Mapping[str, Room],
    *,
    now: datetime,
    lease_seconds: float,
    mint: Mint,
    disconnect_lease: DisconnectLease = _no_lease,
    most: int = MAX_CANDIDATES,
) -> Dispatched:
    """Offer queued jobs to waiting agents.

    :param most: at most so many of them.
    :param rooms: what is known of them; decides only whether it is worth while to look, the database has the last word.
    :raises MintError: when no token can be made; nothing is offered then.
    :raises sqlalchemy.exc.DBAPIError: when the database fails.
    """
    hopeful = [w for w in waiting if w.name in rooms and rooms[w.name].free_slots > 0]

    def look(session: Session) -> tuple[list[Assignment], dict[str, Room], bool]:
        candidates = find_candidates(session, [rooms[w.name] for w in hopeful])
        if not candidates:
            return [], {}, False
        # Only those are read anew whom it may concern: the others of thousands stay as they are known.
        thought = _plan(candidates, hopeful, rooms)
        names = {assignment.agent_name for assignment in thought}
        fresh = read_rooms(session, sorted(names))
        planned = _plan(candidates, [w for w in hopeful if w.name in names], fresh)
        more = len(planned) < len(thought) or len(planned) >= min(most, MAX_CANDIDATES)
        return planned[:most], fresh, more

    if not hopeful:
        return Dispatched()
    assignments, fresh, more = read(sessions, look)
    if not assignments:
        return Dispatched(rooms=fresh, more=more)
    offers = write(
        sessions,
        lambda session: _claim(
            session,
            assignments,
            hopeful,
            now=now,
            lease_seconds=lease_seconds,
            mint=mint,
            disconnect_lease=disconnect_lease,
        ),
    )
    return Dispatched(offers, fresh, more)


def find_candidates(session: Session, rooms: Iterable[Room]) -> list[QueuedJob]:
    """Return the first queued jobs that fit at least one of the agents, in the order in which they are served."""
    largest: dict[tuple[str, str | None], int] = {}
    for room in rooms:
        for queue in room.queues:
            place = (queue, room.team_name)
            largest[place] = max(largest.get(place, 0), room.free_slots)
    by_size: dict[tuple[str | None, int], list[str]] = {}
    for (queue, team), slots in largest.items():
        if slots > 0:
            by_size.setdefault((team, slots), []).append(queue)
    if not by_size:
        return []
    job = EdgeAgentJob
    fits = [
        and_(job.queue.in_(sorted(queues)), job.slots <= slots, _same_team(team))
        for (team, slots), queues in by_size.items()
    ]
    rows = session.execute(
        select(job.id, job.kind, job.queue, job.slots, job.priority_weight, job.queued_at, job.team_name)
        .where(job.state == JobState.QUEUED, job.cancel_reason.is_(None), or_(*fits))
        .order_by(job.kind, job.priority_weight.desc(), job.queued_at)
        .limit(MAX_CANDIDATES)
    )
    return [QueuedJob(*row) for row in rows]


def _same_team(team: str | None) -> Any:
    return EdgeAgentJob.team_name.is_(None) if team is None else EdgeAgentJob.team_name == team


def read_rooms(session: Session, names: Sequence[str], *, lock: bool = False) -> dict[str, Room]:
    """Return how much room these agents have.

    :param lock: lock their rows, and leave out those that are locked already.
    """
    if not names:
        return {}
    agent, job = EdgeAgent, EdgeAgentJob
    query = (
        select(
            agent.name,
            agent.session_id,
            agent.queues,
            agent.granted_queues,
            agent.team_name,
            agent.state,
            agent.problem,
            agent.slots_total,
            agent.slots_used,
            agent.execution_api,
            agent.drain_wanted,
            agent.revoked_at,
        )
        .where(among(session, agent.name, names))
        .order_by(agent.name)
    )
    rows = session.execute(locked(query, session, skip_locked=True) if lock else query).all()
    held: dict[str | None, int] = {
        name: int(slots)
        for name, slots in session.execute(
            select(job.agent_name, func.sum(job.slots))
            .where(among(session, job.agent_name, names), job.state.in_(HELD_STATES))
            .group_by(job.agent_name)
        )
    }
    rooms = {}
    for row in rows:
        free = row.slots_total - max(row.slots_used, held.get(row.name, 0))
        able = takes_jobs(AgentState(row.state), row.problem) and not row.drain_wanted and row.revoked_at is None
        rooms[row.name] = Room(
            row.session_id,
            frozenset(permitted(row.queues, row.granted_queues)),
            row.team_name,
            max(free, 0) if able else 0,
            relays=row.execution_api == "relay",
        )
    return rooms


def _plan(jobs: Iterable[QueuedJob], waiting: Iterable[Waiting], rooms: Mapping[str, Room]) -> list[Assignment]:
    agents = [
        FreeAgent(w.name, rooms[w.name].queues, rooms[w.name].free_slots, rooms[w.name].team_name, w.turn)
        for w in waiting
        if w.name in rooms and rooms[w.name].session_id == w.session_id
    ]
    return plan(jobs, agents, most_per_agent=MAX_OFFERS_PER_POLL)


def _claim(
    session: Session,
    assignments: Sequence[Assignment],
    waiting: Iterable[Waiting],
    *,
    now: datetime,
    lease_seconds: float,
    mint: Mint,
    disconnect_lease: DisconnectLease,
) -> dict[str, list[Offer]]:
    """Turn a plan into offers; what has changed since it was made is left out."""
    session_of = {w.name: w.session_id for w in waiting}
    rooms = read_rooms(session, sorted({a.agent_name for a in assignments}), lock=True)
    free = {name: room.free_slots for name, room in rooms.items() if room.session_id == session_of[name]}
    wanted = [a.job_id for a in assignments if a.agent_name in free]
    query = select(EdgeAgentJob).where(among(session, EdgeAgentJob.id, wanted), EdgeAgentJob.state == JobState.QUEUED)
    jobs = {job.id: job for job in session.scalars(locked(query, session, skip_locked=True))}

    offered: list[tuple[str, Offer]] = []
    offered_bytes = dict.fromkeys(free, 0)
    for assignment in assignments:
        job = jobs.get(assignment.job_id)
        name = assignment.agent_name
        if job is None or job.cancel_reason is not None or job.slots > free.get(name, 0):
            continue
        size = len(json.dumps(job.workload))
        if size > MAX_WORKLOAD_BYTES:
            _end_undeliverable(session, job, f"its workload of {size} bytes is too large to be sent to an agent", now)
            continue
        if offered_bytes[name] + size > _MAX_OFFER_BYTES:
            continue
        try:
            relayed = rooms[name].relays
            lease = (disconnect_lease(job.queue) or None) if relayed else None
            offer = _offer(job, lease_seconds=lease_seconds, mint=None if relayed else mint, disconnect_lease=lease)
        except ValidationError as error:
            _end_undeliverable(session, job, f"no offer can be made of it: {error.errors()[0]['msg']}", now)
            continue
        offered.append((name, offer))
        offered_bytes[name] += size
        free[name] -= max(job.slots, 1)
    stored = _store_offers(session, offered, now=now, lease_until=now + timedelta(seconds=lease_seconds))
    offers: dict[str, list[Offer]] = {}
    for name, offer in offered:
        if (offer.job_id, offer.fence, name) in stored:
            offers.setdefault(name, []).append(offer)
    # The rows were changed by statements of their own, not through these objects.
    session.expunge_all()
    return offers


def _store_offers(
    session: Session, offered: Sequence[tuple[str, Offer]], *, now: datetime, lease_until: datetime
) -> set[tuple[str, int, str]]:
    """Store who is offered what, with one statement for all; return id, fence and agent of what was as it was read.

    Databases without row locks depend on the comparison.
    """
    if not offered:
        return set()
    job = EdgeAgentJob
    if takes_arrays(session):
        arrays: dict[str, Any] = {
            "new_id": [offer.job_id for _, offer in offered],
            "new_fence": [offer.fence for _, offer in offered],
            "new_agent_name": [name for name, _ in offered],
            "new_disconnect_lease_seconds": [offer.disconnect_lease_seconds or None for _, offer in offered],
        }
        result = session.execute(_offered_by_arrays(), {**arrays, "at": now, "until": lease_until})
        return {(row.id, row.fence, row.agent_name or "") for row in result}
    ids = [offer.job_id for _, offer in offered]
    leases = {offer.job_id: offer.disconnect_lease_seconds or None for _, offer in offered}
    values: dict[str, Any] = {
        "state": next_job_state(JobState.QUEUED, JobEvent.OFFER),
        "fence": job.fence + 1,
        "agent_name": case({offer.job_id: literal(name) for name, offer in offered}, value=job.id),
        "offered_at": now,
        "lease_until": lease_until,
        "disconnect_lease_seconds": None
        if not any(leases.values())
        else case({key: literal(lease, Float) for key, lease in leases.items()}, value=job.id),
    }
    as_read = job.fence == case({offer.job_id: literal(offer.fence - 1) for _, offer in offered}, value=job.id)
    statement = update(job).where(
        among(session, job.id, ids), job.state == JobState.QUEUED, job.cancel_reason.is_(None), as_read
    )
    session.execute(statement.values(**values).execution_options(synchronize_session=False))
    rows = session.execute(
        select(job.id, job.fence, job.agent_name).where(among(session, job.id, ids), job.state == JobState.OFFERED)
    )
    return {(row.id, row.fence, row.agent_name or "") for row in rows}


@functools.cache
def _offered_by_arrays() -> ReturningUpdate[str, int, str | None]:
    """Return that statement with arrays: the same text however many offers there are, and no search for each."""
    job = EdgeAgentJob
    own = ("id", "fence", "agent_name", "disconnect_lease_seconds")
    new = rows_of({name: job.__table__.c[name].type for name in own})
    values = {
        "state": next_job_state(JobState.QUEUED, JobEvent.OFFER),
        "fence": new.c.fence,
        "agent_name": new.c.agent_name,
        "offered_at": bindparam("at", type_=job.offered_at.type),
        "lease_until": bindparam("until", type_=job.lease_until.type),
        "disconnect_lease_seconds": new.c.disconnect_lease_seconds,
    }
    as_read = and_(job.id == new.c.id, job.fence == new.c.fence - 1)
    statement = update(job).where(as_read, job.state == JobState.QUEUED, job.cancel_reason.is_(None)).values(values)
    statement = statement.execution_options(synchronize_session=False)
    return statement.returning(job.id, job.fence, job.agent_name)


def _offer(
    job: EdgeAgentJob, *, lease_seconds: float, mint: Mint | None, disconnect_lease: float | None = None
) -> Offer:
    try:
        token = "" if mint is None else mint(job.ti_id)
    except Exception as error:
        raise MintError(f"no token can be made for job {job.id}: {type(error).__name__}: {error}") from error
    return Offer(
        job_id=job.id,
        fence=job.fence + 1,
        kind=job.kind,
        slots=job.slots,
        queue=job.queue[:200],
        lease_seconds=lease_seconds,
        disconnect_lease_seconds=disconnect_lease or 0.0,
        label=label_of(job),
        token=token,
        workload=job.workload,
        limits=job.limits,
    )


def label_of(job: EdgeAgentJob) -> str:
    """Return what people call the job."""
    if job.dag_id is None or job.task_id is None:
        return f"{job.kind} {job.ti_id}"
    index = f"[{job.map_index}]" if job.map_index >= 0 else ""
    return f"{job.dag_id}.{job.task_id}{index} try {job.try_number} of run {job.run_id}"[:200]


def _end_undeliverable(session: Session, job: EdgeAgentJob, detail: str, now: datetime) -> None:
    log.error("Job %s (%s) cannot be offered: %s.%s", job.id, label_of(job), detail, traced(job.workload))
    _compare_and_set(
        session,
        job,
        state=next_job_state(JobState.QUEUED, JobEvent.END),
        outcome=Outcome.NOT_STARTED,
        detail=detail,
        finished_at=now,
    )


def _compare_and_set(session: Session, job: EdgeAgentJob, **values: Any) -> bool:
    """Change a queued job if it is still as it was read; databases without row locks depend on this."""
    statement = update(EdgeAgentJob).where(
        EdgeAgentJob.id == job.id,
        EdgeAgentJob.state == JobState.QUEUED,
        EdgeAgentJob.fence == job.fence,
        EdgeAgentJob.cancel_reason.is_(None),
    )
    return changed(session.execute(statement.values(**values).execution_options(synchronize_session=False))) == 1


def changed(result: Result[Any]) -> int:
    """Return how many rows a statement changed."""
    return result.rowcount if isinstance(result, CursorResult) else 0


def give_back(sessions: Sessions, offers: Iterable[Offer]) -> int:
    """Return offers to their queue that could not be handed to their agent; return how many were."""
    fences = [(offer.job_id, offer.fence) for offer in offers]
    if not fences:
        return 0

    def work(session: Session) -> int:
        return _announced(session, sum(_return_offer(session, job_id, fence) for job_id, fence in sorted(fences)))

    return write(sessions, work)


def _announced(session: Session, count: int) -> int:
    if count:
        announce(session, Topic.JOBS)
    return count


def give_back_offered(sessions: Sessions, agent_name: str, session_id: str) -> int:
    """Return the offers of an agent to their queues that it cannot have heard, or not accepted; return how many.

    Nothing happens when the agent has opened another session since: its hello has settled all.
    """

    def work(session: Session) -> int:
        if not _still_in_session(session, agent_name, session_id):
            return 0
        return _announced(session, _return_from(session, agent_name))

    return write(sessions, work)


def give_back_unstarted(sessions: Sessions, agent_name: str, session_id: str, *, since: datetime) -> int:
    """Return the jobs of a lost agent to their queues that it has never started; return how many.

    Nothing happens when it was heard of since it was lost. A job that was accepted goes back only while its task waits
    in Airflow for its start: should the agent start it after all, Airflow refuses one of the two. It ends as lost if it
    was offered too often.
    """

    def work(session: Session) -> int:
        if not _still_in_session(session, agent_name, session_id, silent_since=since):
            return 0
        return _announced(session, _return_from(session, agent_name) + return_accepted(session, [agent_name]))

    return write(sessions, work)


def _still_in_session(
    session: Session, agent_name: str, session_id: str, *, silent_since: datetime | None = None
) -> bool:
    agent = EdgeAgent
    query = select(agent.session_id, agent.last_contact_at).where(agent.name == agent_name)
    row = session.execute(locked(query, session)).one_or_none()
    if row is None or row.session_id != session_id:
        return False
    return silent_since is None or row.last_contact_at is None or row.last_contact_at <= silent_since


def _return_from(session: Session, agent_name: str) -> int:
    job = EdgeAgentJob
    rows = session.execute(
        select(job.id, job.fence).where(
            job.agent_name == agent_name, job.state == JobState.OFFERED, job.cancel_reason.is_(None)
        )
    ).all()
    return sum(_return_offer(session, row.id, row.fence) for row in sorted(rows))


def return_accepted(session: Session, agent_names: Sequence[str]) -> int:
    """Return accepted jobs of agents that are gone to their queues, if nothing of them has run; return how many."""
    job, ti = EdgeAgentJob, TaskInstance
    rows = session.execute(
        select(job.id, job.fence, job.agent_name, job.workload)
        .join(ti, same_task(session))
        .where(
            job.agent_name.in_(agent_names),
            job.state == JobState.ACCEPTED,
            # Nothing fences a second start of anything but a task.
            job.kind == "task",
            job.cancel_reason.is_(None),
            job.fence < MAX_OFFERS,
            ti.state == "queued",
            ti.try_number == job.try_number,
        )
    ).all()
    count = 0
    for row in sorted(rows, key=lambda row: row.id):
        statement = update(job).where(job.id == row.id, job.state == JobState.ACCEPTED, job.fence == row.fence)
        values = {
            "state": next_job_state(JobState.ACCEPTED, JobEvent.RETURN),
            "agent_name": None,
            "accepted_at": None,
            "offered_at": None,
        }
        count += changed(session.execute(statement.values(**values).execution_options(synchronize_session=False)))
        log.warning(
            "Job %s goes back to its queue: agent %s is gone and never started it.%s",
            row.id,
            row.agent_name,
            traced(row.workload),
        )
    return count


def sweep(sessions: Sessions, *, now: datetime) -> int:
    """Return offers whose lease has ended to their queue, end cancelled jobs that nobody has; return how many."""
    job = EdgeAgentJob
    due = or_(
        and_(job.state == JobState.OFFERED, or_(job.lease_until < now, job.cancel_reason.is_not(None))),
        and_(job.state == JobState.QUEUED, job.cancel_reason.is_not(None)),
    )
    query = (
        select(job.id, job.state, job.fence, job.agent_name, job.cancel_reason, job.workload)
        .where(due)
        .limit(MAX_CANDIDATES)
    )
    found = read(sessions, lambda session: session.execute(query).all())
    if not found:
        return 0

    def work(session: Session) -> int:
        count = 0
        for row in sorted(found, key=lambda row: row.id):
            if row.cancel_reason is None:
                count += _return_offer(session, row.id, row.fence)
                continue
            statement = update(job).where(job.id == row.id, job.state == row.state, job.fence == row.fence)
            count += changed(
                session.execute(
                    statement.values(
                        state=next_job_state(JobState(row.state), JobEvent.END),
                        outcome=Outcome.REVOKED,
                        detail=row.cancel_reason,
                        lease_until=None,
                        finished_at=now,
                    )
                )
            )
        return count

    count = write(sessions, lambda session: _announced(session, work(session)))
    for row in found:
        if row.state == JobState.OFFERED and row.cancel_reason is None:
            log.info("Job %s was not accepted by agent %s in time.%s", row.id, row.agent_name, traced(row.workload))
    return count


def _return_offer(session: Session, job_id: str, fence: int) -> int:
    statement = update(EdgeAgentJob).where(
        EdgeAgentJob.id == job_id, EdgeAgentJob.state == JobState.OFFERED, EdgeAgentJob.fence == fence
    )
    values = {
        "state": next_job_state(JobState.OFFERED, JobEvent.LEASE_EXPIRED),
        "agent_name": None,
        "lease_until": None,
        "offered_at": None,
    }
    return changed(session.execute(statement.values(**values).execution_options(synchronize_session=False)))
