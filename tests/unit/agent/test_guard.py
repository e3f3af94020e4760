"""Evidence of progress, and what the watchdog makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import pytest
from structlog.testing import capture_logs

from airflow_edge_agent.runtime.guard import LoopEnded, Progress, run_guarded
from airflow_edge_agent.runtime.watchdog import Watchdog
from fakes.host import MemoryNotifier
from fakes.waiting import eventually


async def ticking() -> None:
    while True:  # noqa: ASYNC110 -- a loop that ticks is what is wanted
        await asyncio.sleep(0.01)


async def waiting() -> None:
    await asyncio.Event().wait()


async def test_loops_that_wait_or_tick_are_healthy() -> None:
    progress = Progress()
    until = asyncio.Event()
    guarded = asyncio.create_task(
        run_guarded({"a": ticking(), "b": waiting()}, until, progress, {"a": lambda: 10.0, "b": lambda: None})
    )
    await asyncio.sleep(0.05)
    assert progress.names == ["a", "b"]
    assert progress.stuck() == []
    until.set()
    await guarded


async def test_a_followed_loop_that_ends_is_named_with_its_cause() -> None:
    async def broken() -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    with pytest.raises(LoopEnded, match="the broken loop") as caught:
        await run_guarded({"broken": broken(), "other": waiting()}, asyncio.Event(), Progress())
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


async def test_a_loop_that_hangs_is_found_with_the_place_where_it_waits() -> None:
    now = [0.0]
    progress = Progress(clock=lambda: now[0])

    async def deep() -> None:
        await waiting()

    task = asyncio.create_task(progress.follow("deep", deep(), lambda: 30.0))
    await asyncio.sleep(0)
    now[0] = 31
    (stuck,) = progress.stuck()
    assert (stuck.name, stuck.seconds) == ("deep", 31)
    assert "deep (test_guard.py:" in stuck.where
    assert "waiting (test_guard.py:" in stuck.where
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_signs_of_life_end_when_a_loop_hangs_and_it_is_named_once() -> None:
    progress, notifier = Progress(), MemoryNotifier()
    limit: list[float | None] = [None]
    loops = {
        "victim": ticking(),
        "watchdog": Watchdog(progress, notifier, 0.2, lambda _: None).run(),
    }
    until = asyncio.Event()
    with capture_logs() as logs:
        guarded = asyncio.create_task(run_guarded(loops, until, progress, {"victim": lambda: limit[0]}))
        await eventually(lambda: notifier.messages.count("WATCHDOG=1") >= 3)
        limit[0] = 0.1
        progress.freeze("victim", "hang")
        await eventually(lambda: any(entry.get("loop") == "victim" for entry in logs))
        before = notifier.messages.count("WATCHDOG=1")
        await asyncio.sleep(0.3)
        assert notifier.messages.count("WATCHDOG=1") == before
        until.set()
        await guarded
    (said,) = [entry for entry in logs if entry.get("edge_event") == "stuck"]
    assert said["loop"] == "victim"


def test_a_blocked_event_loop_is_told_from_the_thread_with_name_and_stack() -> None:
    said: list[str] = []
    release = threading.Event()

    async def block_here() -> None:
        await asyncio.sleep(0.3)
        release.wait(30)

    async def main() -> None:
        progress = Progress()

        def shout(text: str) -> None:
            said.append(text)
            release.set()

        loops = {"culprit": block_here(), "watchdog": Watchdog(progress, MemoryNotifier(), 0.4, shout).run()}
        with contextlib.suppress(LoopEnded):
            await run_guarded(loops, asyncio.Event(), progress)

    begun = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - begun < 20
    assert "the culprit loop is stuck and blocks the event loop" in said[0]
    assert "block_here" in said[0]
    assert len(said) == 1
