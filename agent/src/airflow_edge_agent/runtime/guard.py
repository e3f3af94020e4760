"""Named loops that must not end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class LoopEnded(RuntimeError):
    """A loop that should run as long as the agent has ended."""


async def run_guarded(loops: dict[str, Coroutine[Any, Any, None]], until: asyncio.Event) -> None:
    """Run loops side by side until ``until`` is set, then cancel them.

    :raises LoopEnded: one of them returned or raised; the message names it and the cause is attached.
    """
    stop: asyncio.Task[Any] = asyncio.create_task(until.wait(), name="until")
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(loop, name=name) for name, loop in loops.items()]
    try:
        await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done() and not until.is_set():
                raise LoopEnded(f"the {task.get_name()} loop ended unexpectedly") from task.exception()
    finally:
        for task in (stop, *tasks):
            task.cancel()
        await asyncio.gather(stop, *tasks, return_exceptions=True)
