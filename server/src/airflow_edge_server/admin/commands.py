"""What ``airflow edge-agents`` does to the fleet: beside Airflow through the database, from elsewhere through the API.

A fault ends with one line on standard error and a status that is not 0.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from airflow_edge_agent.protocol.jobs import JobState
from airflow_edge_agent.protocol.states import AgentState
from airflow_edge_server.admin import models
from airflow_edge_server.admin.fleet import PAGE, Fleet, FleetError
from airflow_edge_server.admin.reach import open_fleet, print_rows, tell
from airflow_edge_server.console import age, command, fail, fault_of, note, seconds_of, show_time
from airflow_edge_server.domain.enrolment import matches
from airflow_edge_server.store.fleet import AgentFilter, JobFilter

if TYPE_CHECKING:
    from argparse import Namespace

# --- Looking ----------------------------------------------------------------------------------------------------------


@command
def overview(args: Namespace) -> None:
    """Show the fleet at a glance."""
    with open_fleet(args) as fleet:
        seen = fleet.overview()
    if args.output in {"json", "yaml"}:
        print_rows(args, [seen.model_dump(mode="json")])
        return
    states = ", ".join(f"{count} {state}" for state, count in seen.agents_by_state.items())
    rows = {
        "agents": f"{seen.agents}, of these {seen.agents_connected} connected" + (f" ({states})" if states else ""),
        "slots": f"{seen.slots_used} of {seen.slots_total} in use",
        "jobs": f"{seen.jobs_queued} queued, {seen.jobs_running} running",
        "oldest queued": show_time(seen.oldest_queued_at),
        "finished in the last hour": str(seen.finished_last_hour),
        "queues without agent": ", ".join(seen.queues_without_agent),
        **{f"problem: {trouble.name}": trouble.problem for trouble in seen.problems},
    }
    if (more := seen.problems_total - len(seen.problems)) > 0:
        rows["problem"] = f"{more} more agents have one: see `airflow edge-agents list`"
    print_rows(args, ({"what": what, "how": how} for what, how in rows.items()))


@command
def agents_list(args: Namespace) -> None:
    """List agents."""
    with open_fleet(args) as fleet:
        print_rows(args, (_agent_row(agent) for agent in _selected(fleet, args)))


@command
def show(args: Namespace) -> None:
    """Show one agent in full."""
    with open_fleet(args) as fleet:
        agent = fleet.agent(args.name)
    if args.output in {"json", "yaml"}:
        print_rows(args, [agent.model_dump(mode="json")])
        return
    rows = _agent_row(agent) | {
        "connected_at": show_time(agent.connected_at),
        "carrier": agent.carrier or "",
        "overrides": _overrides(agent.overrides),
        **{f"[{name}]": str(value) for name, value in (agent.configuration or {}).items()},
    }
    print_rows(args, ({"what": what, "how": how} for what, how in rows.items()))


@command
def events(args: Namespace) -> None:
    """List what happened to an agent."""
    with open_fleet(args) as fleet:
        found = fleet.events(args.name, limit=args.limit)
    print_rows(
        args,
        (
            {"at": show_time(one.at), "kind": one.kind, "by": one.by or "", "detail": one.detail or ""}
            for one in found.items
        ),
    )


@command
def metrics(args: Namespace) -> None:
    """Show how an agent's host was."""
    with open_fleet(args) as fleet:
        found = fleet.metrics(args.name, minutes=args.minutes)
    print_rows(
        args,
        (
            {
                "at": show_time(point.at),
                "cpu_percent": _number(point.cpu_percent),
                "memory_percent": _number(point.memory_percent),
                "disk_percent": _number(point.disk_percent),
                "slots_used": _number(point.slots_used),
            }
            for point in found.points
        ),
    )


@command
def queues(args: Namespace) -> None:
    """List the queues."""
    with open_fleet(args) as fleet:
        found = fleet.queues()
    print_rows(
        args,
        (
            {
                "queue": one.name,
                "team": one.team or "",
                "queued": str(one.queued),
                "running": str(one.running),
                "oldest_seconds": _number(one.oldest_waiting_seconds),
                "agents": f"{one.agents_ready}/{one.agents}",
                "free_slots": str(one.free_slots),
                "warning": one.warning or "",
            }
            for one in found.items
        ),
    )


@command
def jobs(args: Namespace) -> None:
    """List jobs."""
    states = [_one_of(JobState, text) for text in args.job_state or ()]
    wanted = JobFilter(states=states, queue=args.queue, agent=args.agent, dag_id=args.dag_id)
    with open_fleet(args) as fleet:
        found = fleet.jobs(wanted, limit=args.limit)
    print_rows(args, (_job_row(job) for job in found.items))
    if found.total > len(found.items):
        note(f"{found.total - len(found.items)} more match: see --limit and the other options")


def _job_row(job: models.JobItem) -> dict[str, Any]:
    mapped = f"[{job.map_index}]" if job.map_index >= 0 else ""
    return {
        "id": job.id,
        "state": job.state.value,
        "queue": job.queue,
        "team": job.team or "",
        "agent": job.agent or "",
        "dag_id": job.dag_id or "",
        "run_id": job.run_id or "",
        "task_id": f"{job.task_id or job.kind}{mapped}",
        "try": str(job.try_number),
        "queued": show_time(job.queued_at),
        "wall_seconds": _number(job.wall_seconds, digits=1),
        "cpu_seconds": _number(job.cpu_seconds, digits=1),
        "peak_mib": _number(None if job.peak_memory_bytes is None else job.peak_memory_bytes / 2**20),
        "outcome": job.outcome or "",
        "why": job.why or job.cancel_reason or job.detail or "",
    }


# --- Changing ---------------------------------------------------------------------------------------------------------


@command
def maintenance(args: Namespace) -> None:
    """Ask for maintenance, or for its end."""
    if args.switch == "off" and args.for_time is not None:
        fail("--for goes with 'on' only")
    action: models.AgentAction = "maintenance_on" if args.switch == "on" else "maintenance_off"
    _order(
        args,
        action=action,
        comment=args.comment,
        for_seconds=None if args.for_time is None else seconds_of(args.for_time),
    )


@command
def drain(args: Namespace) -> None:
    """Offer agents nothing more."""
    _order(args, action="drain")


@command
def resume(args: Namespace) -> None:
    """Offer agents jobs again."""
    _order(args, action="resume")


@command
def concurrency(args: Namespace) -> None:
    """Let agents run so many jobs at a time."""
    slots = None if args.slots == "default" else args.slots
    _order(args, action="concurrency", slots=slots)


@command
def serve(args: Namespace) -> None:
    """Let agents serve more queues, or fewer."""
    _order(args, action="queues", add=args.add or [], remove=args.remove or [], reset=args.reset)


@command
def remove(args: Namespace) -> None:
    """Forget agents that are offline."""
    _order(args, action="delete")


@command
def revoke(args: Namespace) -> None:
    """Take agents' credentials away."""
    _order(args, action="revoke", running_jobs=args.jobs)


@command
def cancel(args: Namespace) -> None:
    """End jobs."""
    states = [_one_of(JobState, text) for text in args.job_state or ()]
    if JobState.FINISHED in states:
        fail("a finished job cannot be cancelled: leave out --state finished")
    if not (args.ids or states or args.queue or args.agent or args.dag_id):
        fail("which jobs? Give their ids, or say --queue, --agent, --dag-id or --state")
    wanted = JobFilter(
        states=states or [state for state in JobState if state is not JobState.FINISHED],
        queue=args.queue,
        agent=args.agent,
        dag_id=args.dag_id,
        ids=[text for text in args.ids if re.fullmatch(models.JOB_ID_PATTERN, text)],
    )
    with open_fleet(args) as fleet:
        found = models.JobList(items=[], total=0)
        if wanted.ids or not args.ids:
            found = fleet.jobs(wanted, limit=PAGE)
        known = {job.id for job in found.items}
        results = [_not_to_cancel(job_id) for job_id in dict.fromkeys(args.ids) if job_id not in known]
        for job in found.items:
            # Upper and lower case differ where something is to be changed.
            if args.agent and not matches(args.agent, job.agent or ""):
                continue
            try:
                what = f"of {job.dag_id or job.kind}, {job.state}, is cancelled; Airflow takes this try for failed"
                dry = models.Done(name=job.id, ok=True, message=what)
                results.append(dry if args.dry_run else fleet.cancel(job.id, args.reason))
            except FleetError as error:
                results.append(models.Done(name=job.id, ok=False, message=str(error)))
    if not results:
        note("No such job waits or runs.")
    if found.total > len(found.items):
        note(f"{found.total - len(found.items)} more match: run this again for them")
    tell(args, "Job", results, dry_run=args.dry_run)


def _not_to_cancel(job_id: str) -> models.Done:
    message = f"there is no job {job_id} that has not ended, or not one with these options"
    return models.Done(name=job_id, ok=False, message=message, code="not_found")


def _order(args: Namespace, **what: Any) -> None:
    try:
        order = models.AgentOrder(**what)
    except ValidationError as error:
        fail(fault_of(error))
    with open_fleet(args) as fleet:
        if not (args.names or args.queue or args.state):
            fail("which agents? Name them, with * and ? if you like, or say --queue or --state")
        names = [agent.name for agent in _selected(fleet, args)]
        if not names:
            note("There is no such agent: nothing is changed.")
        done = fleet.order(names, order, dry_run=args.dry_run)
    tell(args, "Agent", done.results, dry_run=done.dry_run)


def _selected(fleet: Fleet, args: Namespace) -> list[models.AgentItem]:
    """Return the agents that are meant, by name.

    :raises FleetError: when nobody is called or matches what was given.
    """
    states = [_one_of(AgentState, text) for text in args.state or ()]
    found: dict[str, models.AgentItem] = {}
    for name in args.names or [None]:
        wanted = AgentFilter(name=name, queue=args.queue, states=states)
        # Upper and lower case differ where something is to be changed.
        matching = [one for one in fleet.agents(wanted) if name is None or matches(name, one.name)]
        if not matching and name is not None:
            what = "like" if set(name) & set("*?") else "called"
            filters = " with that queue and state" if states or args.queue else ""
            raise FleetError(f"there is no agent {what} {name!r}{filters}: see `airflow edge-agents list`")
        found |= {one.name: one for one in matching}
    return [found[name] for name in sorted(found)]


def _one_of(kind: type[Any], text: str) -> Any:
    words = text.strip().lower().replace("_", " ").replace("-", " ")
    try:
        return kind(words)
    except ValueError:
        fail(f"{text!r} is no state; there are: {', '.join(str(state) for state in kind)}")


# --- Rows -------------------------------------------------------------------------------------------------------------


def _agent_row(agent: models.AgentItem) -> dict[str, Any]:
    return {
        "name": agent.name,
        "state": agent.state.value,
        "host": agent.hostname or "",
        "queues": ",".join(agent.queues),
        "refused_queues": ",".join(agent.refused_queues),
        "team": agent.team or "",
        "revoked": show_time(agent.revoked_at),
        "slots": f"{agent.slots_used}/{agent.slots_total}",
        "jobs": str(agent.jobs),
        "last_contact": show_time(agent.last_contact_at),
        "away": _away(agent.away),
        "seconds_ago": "" if agent.last_contact_at is None else str(age(agent.last_contact_at)),
        "versions": " ".join(f"{name} {value}" for name, value in agent.versions.items()),
        "cpu_percent": _number(agent.metrics.cpu_percent),
        "memory_percent": _number(agent.metrics.memory_percent),
        "disk_percent": _number(agent.metrics.disk_percent),
        "problem": agent.problem or "",
        "warning": "; ".join([*filter(None, [agent.drained]), *agent.warnings]),
        "maintenance": _maintenance(agent.maintenance),
    }


def _away(found: models.AwayView | None) -> str:
    if found is None:
        return ""
    words = [f"disconnected since {show_time(found.since)}"]
    if found.lease_until is not None:
        words.append(f"lease until {show_time(found.lease_until)}")
    words.append(f"{found.running} task{'' if found.running == 1 else 's'} running")
    if found.results_waiting is not None:
        words.append(f"{found.results_waiting} result{'' if found.results_waiting == 1 else 's'} waiting")
    return ", ".join(words)


def _maintenance(found: models.MaintenanceView | None) -> str:
    if found is None or found.since is None:
        return ""
    until = f" until {show_time(found.until)}" if found.until is not None else ""
    text = f"since {show_time(found.since)}{until} by {found.by or 'unknown'}"
    return f"{text}: {found.comment}" if found.comment else text


def _overrides(found: models.Overrides) -> str:
    parts = [f"{found.slots} slots"] if found.slots is not None else []
    parts += [f"+{queue}" for queue in found.queues_added] + [f"-{queue}" for queue in found.queues_removed]
    return ", ".join([*parts, "drained"] if found.drain else parts)


def _number(value: float | None, *, digits: int = 0) -> str:
    return "" if value is None else f"{value:.{digits}f}"
