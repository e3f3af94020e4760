"""What administrators do to agents and jobs. Each change is in Airflow's audit log, in the same transaction.

Whatever speaks against an order is found before anything is changed, so that the orders of a whole bulk can share a
transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from airflow_edge_agent.protocol.states import CONNECTED_STATES, AgentState
from airflow_edge_server import audit
from airflow_edge_server.admin import models
from airflow_edge_server.admin.views import NotFoundError, is_of
from airflow_edge_server.store import agents, controls, enrolment, fleet
from airflow_edge_server.store.events import Kind, note_event
from airflow_edge_server.store.models import EdgeAgent
from airflow_edge_server.store.sessions import find_agent
from airflow_edge_server.store.transaction import Sessions, write
from airflow_edge_server.store.wakeup import Topic, announce


class ConflictError(Exception):
    """It cannot be done as things are. The message says why, and what would have to be otherwise."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who wants something."""

    name: str
    origin: str
    """From where: an address, or ``command line on HOST``."""
    teams: fleet.Teams = None
    """Whose agents and jobs he may change, beside those of no team."""


@dataclass(frozen=True, slots=True)
class _Order:
    session: Session
    agent: EdgeAgent
    what: models.AgentOrder
    actor: Actor

    def record(self, verb: str, **facts: object) -> None:
        audit.record(self.session, verb, who=self.actor.name, agent=self.agent.name, origin=self.actor.origin, **facts)

    def note(self, kind: Kind, detail: str) -> None:
        note_event(self.session, self.agent.name, kind, detail, by=self.actor.name)

    @property
    def connected(self) -> bool:
        return AgentState(self.agent.state) in CONNECTED_STATES


def order(session: Session, name: str, what: models.AgentOrder, actor: Actor) -> models.Done:
    """Do something to one agent.

    :raises NotFoundError: when there is none of that name that the actor may change.
    :raises ConflictError: when it cannot be done as things are; nothing was changed.
    """
    agent = find_agent(session, name)
    if agent is None or not is_of(agent.team_name, actor.teams):
        raise NotFoundError(f"there is no agent called {name!r}")
    message = _ACTIONS[what.action](_Order(session, agent, what, actor))
    return models.Done(name=name, ok=True, message=message)


class _DryRun(Exception):
    """Takes everything back that was done to see what would become of it."""

    def __init__(self, done: models.BulkDone) -> None:
        self.done = done
        super().__init__("a dry run")


def order_many(
    sessions: Sessions, names: Sequence[str], what: models.AgentOrder, actor: Actor, *, dry_run: bool
) -> models.BulkDone:
    """Do the same to several agents; each result says what became of it.

    :param dry_run: do all of it, see what comes of it, and take it back.
    :raises sqlalchemy.exc.DBAPIError: when the database fails; nothing was changed then.
    """

    def work(session: Session) -> models.BulkDone:
        results = [_one_of_many(session, name, what, actor) for name in sorted(set(names))]
        done = models.BulkDone(dry_run=dry_run, failed=sum(not one.ok for one in results), results=results)
        if dry_run:
            raise _DryRun(done)
        return done

    try:
        return write(sessions, work)
    except _DryRun as dry:
        return dry.done


def _one_of_many(session: Session, name: str, what: models.AgentOrder, actor: Actor) -> models.Done:
    try:
        return order(session, name, what, actor)
    except NotFoundError as error:
        return models.Done(name=name, ok=False, message=str(error), code="not_found")
    except ConflictError as error:
        return models.Done(name=name, ok=False, message=str(error), code="conflict")


def _maintenance_on(given: _Order) -> str:
    what = given.what
    until = controls.until_of(what.for_seconds)
    agents.set_maintenance(
        given.session, given.agent.name, on=True, comment=what.comment, by=given.actor.name, until=until
    )
    ends = None if until is None else until.isoformat(timespec="seconds")
    given.record("maintenance_on", comment=what.comment, until=ends)
    given.note(Kind.MAINTENANCE, _sentence("on", what.comment, None if ends is None else f"until {ends}"))
    return "is told to enter maintenance" if given.connected else "is in maintenance; it is not connected"


def _maintenance_off(given: _Order) -> str:
    agents.set_maintenance(given.session, given.agent.name, on=False, comment=given.what.comment, by=given.actor.name)
    given.record("maintenance_off", comment=given.what.comment)
    given.note(Kind.MAINTENANCE, _sentence("off", given.what.comment))
    return "is told to leave maintenance" if given.connected else "is not in maintenance any more"


def _drain(given: _Order) -> str:
    return _set_drain(given, drain=True, verb="drain", message="is offered no more jobs until it is resumed")


def _resume(given: _Order) -> str:
    return _set_drain(given, drain=False, verb="resume", message="is offered jobs again")


def _set_drain(given: _Order, *, drain: bool, verb: str, message: str) -> str:
    if bool(given.agent.drain_wanted) == drain:
        return "is drained already" if drain else "is not drained by the server"
    given.agent.drain_wanted = drain or None
    given.record(verb)
    given.note(Kind.CHANGED, message)
    controls.touch_controls(given.session, given.agent)
    announce(given.session, Topic.JOBS)
    return message


def _concurrency(given: _Order) -> str:
    agent, slots = given.agent, given.what.slots
    if agent.slots_wanted == slots:
        return "has that many slots already" if slots is not None else "has the slots of its own configuration"
    given.record("set_concurrency", slots=slots, before=agent.slots_wanted)
    agent.slots_wanted = slots
    message = "has the slots of its own configuration again" if slots is None else f"is told to have {slots} slots"
    given.note(Kind.CHANGED, message)
    controls.touch_controls(given.session, agent)
    return message


def _queues(given: _Order) -> str:
    agent, what = given.agent, given.what
    both = sorted(set(what.add) & set(what.remove))
    if both:
        raise ConflictError(f"queues cannot be added and removed at once: {', '.join(both)}")
    if not (what.add or what.remove or what.reset):
        raise ConflictError("nothing to do: name queues to add or to remove, or reset them")
    try:
        changed = controls.change_queues(agent, what.add, what.remove, reset=what.reset)
    except ValueError as error:
        given.session.expire(agent)
        raise ConflictError(str(error)) from None
    if not changed:
        return "serves these queues already"
    given.record("set_queues", add=what.add or None, remove=what.remove or None, reset=what.reset or None)
    plus = [f"+{queue}" for queue in agent.queues_added or ()]
    minus = [f"-{queue}" for queue in agent.queues_removed or ()]
    changes = " ".join([*plus, *minus])
    message = f"is told of its queues: {changes}" if changes else "serves the queues of its own configuration again"
    given.note(Kind.CHANGED, message)
    controls.touch_controls(given.session, agent)
    return message


def _revoke(given: _Order) -> str:
    session, name = given.session, given.agent.name
    count = enrolment.revoke_agent(
        session, name, jobs=given.what.running_jobs, by=given.actor.name, origin=given.actor.origin
    )
    total = count or 0
    revoked = f"{total} credential{'' if total == 1 else 's'} revoked"
    if given.what.running_jobs == "cancel":
        given.note(Kind.REVOKED, f"{revoked}; its jobs are ended")
        return f"is shut out: {revoked}; its running jobs are ended"
    held = controls.count_held(session, name)
    if not held:
        given.note(Kind.REVOKED, f"{revoked}; it holds no jobs")
        return f"is shut out: {revoked}; it holds no jobs"
    may = f"may finish its {held} job{'' if held == 1 else 's'}"
    given.note(Kind.REVOKED, f"{revoked}; it {may}")
    return f"{may}, and is shut out then: {revoked}"


def _delete(given: _Order) -> str:
    if given.connected:
        raise ConflictError(
            f"{given.agent.name} is '{given.agent.state}': only an agent that is offline can be removed"
        )
    if (held := controls.count_held(given.session, given.agent.name)) > 0:
        raise ConflictError(f"{given.agent.name} still holds {held} jobs, of which nobody knows yet how they end")
    given.record("delete_agent")
    controls.delete_agent(given.session, given.agent)
    return "is removed, with its credentials and its past"


_ACTIONS: dict[models.AgentAction, Callable[[_Order], str]] = {
    "maintenance_on": _maintenance_on,
    "maintenance_off": _maintenance_off,
    "drain": _drain,
    "resume": _resume,
    "concurrency": _concurrency,
    "queues": _queues,
    "revoke": _revoke,
    "delete": _delete,
}


def _sentence(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part)


def cancel_job(session: Session, job_id: str, reason: str | None, actor: Actor) -> models.Done:
    """End a job.

    :raises NotFoundError: when there is no such job that the actor may change.
    :raises ConflictError: when it has ended, or is being ended already.
    """
    _, known = fleet.find_jobs(session, fleet.JobFilter(ids=[job_id], teams=actor.teams), limit=0, offset=0)
    if not known:
        raise NotFoundError(f"there is no job {job_id}")
    text = f"cancelled by {actor.name}" + (f": {reason}" if reason else "")
    if not controls.cancel_job(session, job_id, text):
        raise ConflictError(f"job {job_id} has ended, or is being ended already")
    audit.record(session, "cancel_job", who=actor.name, origin=actor.origin, job=job_id, reason=reason)
    return models.Done(name=job_id, ok=True, message="is cancelled; Airflow takes this try for failed")
