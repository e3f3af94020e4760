"""Which waiting job goes to which waiting agent."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

KIND_ORDER = {"callback": 0, "connection_test": 1, "task": 2}
"""Callbacks and connection tests go first: they are short, and somebody waits for what they say."""


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """What the decision needs to know of a job."""

    id: str
    kind: str
    queue: str
    slots: int
    priority_weight: int
    queued_at: datetime
    team_name: str | None = None


@dataclass(frozen=True, slots=True)
class FreeAgent:
    """An agent that waits for work, and how much it can take."""

    name: str
    queues: frozenset[str]
    free_slots: int
    team_name: str | None = None
    turn: int = 0
    """Grows with each job the agent was given; the smaller one goes first among equals."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """One job for one agent."""

    job_id: str
    agent_name: str


def dispatch_key(job: QueuedJob) -> tuple[int, int, datetime, str]:
    """Sort key of the order in which jobs are served."""
    return (KIND_ORDER.get(job.kind, len(KIND_ORDER)), -job.priority_weight, job.queued_at, job.id)


def plan(jobs: Iterable[QueuedJob], agents: Sequence[FreeAgent], *, most_per_agent: int) -> list[Assignment]:
    """Assign jobs to agents, in the order in which the jobs are served.

    A job goes to the agent of its queue and team with most free slots; among equals to the one whose turn came least
    recently. A job that fits nowhere is passed over: no slots are kept free for it.
    """
    free = {agent.name: agent.free_slots for agent in agents if agent.free_slots > 0}
    turns = {agent.name: agent.turn for agent in agents}
    given = dict.fromkeys(free, 0)
    # In each place the best agent on top; one that has changed since it was put there is put back as it is now.
    by_place: dict[tuple[str, str | None], list[tuple[int, int, str]]] = {}
    for agent in agents:
        if agent.name in free:
            for queue in agent.queues:
                by_place.setdefault((queue, agent.team_name), []).append((-agent.free_slots, agent.turn, agent.name))
    for heap in by_place.values():
        heapq.heapify(heap)

    assignments: list[Assignment] = []
    for job in sorted(jobs, key=dispatch_key):
        heap = by_place.get((job.queue, job.team_name), [])
        while heap:
            name = heap[0][2]
            now = (-free[name], turns[name], name)
            if given[name] >= most_per_agent or not free[name]:
                heapq.heappop(heap)
            elif heap[0] != now:
                heapq.heapreplace(heap, now)
            else:
                break
        # The one on top has most room: what does not fit there fits nowhere.
        if not heap or free[heap[0][2]] < max(job.slots, 1):
            continue
        chosen = heap[0][2]
        assignments.append(Assignment(job.id, chosen))
        free[chosen] -= max(job.slots, 1)
        given[chosen] += 1
        turns[chosen] += 1
    return assignments
