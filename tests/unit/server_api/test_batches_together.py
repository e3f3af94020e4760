"""Batches of many agents in one transaction."""

from __future__ import annotations

import asyncio
import random
import threading
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from airflow_edge_agent.protocol.frames import Batch
from airflow_edge_server.api.auth import Caller
from airflow_edge_server.api.service import Answer, Service
from airflow_edge_server.api.together import MOST, MOST_BYTES, Together
from airflow_edge_server.domain.dispatch import Assignment, FreeAgent, QueuedJob, dispatch_key, plan


class FakeService:
    """Answers with the session of the batch, and keeps what came together."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.open = threading.Event()
        self.bad: set[str] = set()

    def on_channels(self, items: Sequence[tuple[Caller, Batch, Any]]) -> list[Answer]:
        names = [caller.agent_name for caller, _, _ in items]
        self.groups.append(names)
        assert self.open.wait(30)
        if self.bad & set(names):
            raise ValueError("a batch that nobody foresaw")
        return [Answer(name) for name in names]

    def on_channel(self, caller: Caller, batch: Batch, _: Any) -> Answer:
        if caller.agent_name in self.bad:
            raise ValueError("a batch that nobody foresaw")
        return Answer(caller.agent_name)


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def _ask(together: Together, name: str, *frames: dict[str, Any]) -> asyncio.Task[Answer]:
    batch = Batch(session_id=str(uuid.UUID(int=1)), frames=list(frames))
    return asyncio.create_task(together.answer(Caller(name, "0" * 16), batch, None))


async def _asked(service: FakeService, groups: int) -> None:
    async with asyncio.timeout(30):
        while len(service.groups) < groups:  # noqa: ASYNC110  set in another thread
            await asyncio.sleep(0.01)


async def test_what_comes_while_others_are_answered_is_answered_together(
    service: FakeService, threads: ThreadPoolExecutor
) -> None:
    together = Together(cast("Service", service), threads)
    first = [_ask(together, "a")]
    await _asked(service, 1)
    first.append(_ask(together, "b"))
    await _asked(service, 2)
    later = [_ask(together, name) for name in ("c", "d", "c", "e")]
    await asyncio.sleep(0)
    service.open.set()
    answers = await asyncio.gather(*first, *later)
    assert [answer.session_id for answer in answers] == ["a", "b", "c", "d", "c", "e"]
    assert service.groups[:2] == [["a"], ["b"]]
    # The second batch of an agent needs what the first one changes.
    assert service.groups[2:] == [["c", "d"], ["c", "e"]]


async def test_a_group_has_its_bounds(service: FakeService, threads: ThreadPoolExecutor) -> None:
    together = Together(cast("Service", service), threads)
    first = [_ask(together, "a")]
    await _asked(service, 1)
    first.append(_ask(together, "b"))
    await _asked(service, 2)
    large = {"type": "log", "data": "x" * (MOST_BYTES // 2 + 1)}
    later = [_ask(together, name, large) for name in ("c", "d")]
    later += [_ask(together, f"n{number}") for number in range(2 * MOST)]
    await asyncio.sleep(0)
    service.open.set()
    await asyncio.gather(*first, *later)
    assert ["c"] in service.groups
    assert max(map(len, service.groups)) <= MOST


async def test_one_that_fails_does_not_harm_the_others(service: FakeService, threads: ThreadPoolExecutor) -> None:
    together = Together(cast("Service", service), threads)
    service.bad = {"c"}
    first = [_ask(together, "a")]
    await _asked(service, 1)
    first.append(_ask(together, "b"))
    await _asked(service, 2)
    later = [_ask(together, name) for name in ("c", "d")]
    await asyncio.sleep(0)
    service.open.set()
    answers = await asyncio.gather(*first, *later, return_exceptions=True)
    assert isinstance(answers[2], ValueError)
    assert isinstance(answers[3], Answer)


def test_the_plan_is_that_of_the_plain_rule() -> None:
    """Most free slots first, then who has waited longest for its turn; whatever is done to find them quickly."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for seed in range(500):
        chance = random.Random(seed)
        jobs = [
            QueuedJob(str(n), "task", chance.choice("ab"), chance.choice([1, 1, 2, 3]), chance.randint(1, 3), start)
            for n in range(chance.randint(0, 12))
        ]
        agents = [
            FreeAgent(f"n{n}", frozenset(chance.sample("ab", chance.randint(1, 2))), chance.randint(0, 5))
            for n in range(chance.randint(0, 6))
        ]
        assert plan(jobs, agents, most_per_agent=3) == _plainly(jobs, agents, 3)


def _plainly(jobs: list[QueuedJob], agents: list[FreeAgent], most: int) -> list[Assignment]:
    free = {agent.name: agent.free_slots for agent in agents}
    turns = {agent.name: agent.turn for agent in agents}
    given = dict.fromkeys(free, 0)
    found = []
    for job in sorted(jobs, key=dispatch_key):
        fitting = [
            a.name for a in agents if job.queue in a.queues and free[a.name] >= job.slots and given[a.name] < most
        ]
        if fitting:
            chosen = min(fitting, key=lambda name: (-free[name], turns[name], name))
            found.append(Assignment(job.id, chosen))
            free[chosen] -= job.slots
            given[chosen] += 1
            turns[chosen] += 1
    return found
