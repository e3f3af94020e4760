"""Named loops that must not end, and the evidence that they make progress."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any, Literal

Expectation = Callable[[], float | None]
"""Within how many seconds the loop must take a step, as things are now; ``None``: it may wait as long as it likes."""

FreezeKind = Literal["block", "hang"]


class LoopEnded(RuntimeError):
    """A loop that should run as long as the agent has ended."""


@dataclass
class _Loop:
    inner: Coroutine[Any, Any, None]
    expected: Expectation | None
    stepped_at: float
    in_step_since: float | None = None
    freeze: FreezeKind | None = None


@dataclass(frozen=True)
class Stuck:
    """A loop without progress."""

    name: str
    seconds: float
    where: str
    """Where it waits, innermost last."""


class Progress:
    """Watches each step of each loop. Read by the watchdog's thread as well.

    A loop that waits is healthy, unless it was expected to have something to do by now.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._loops: dict[str, _Loop] = {}

    @property
    def names(self) -> list[str]:
        """The loops there are."""
        return list(self._loops)

    def follow(
        self, name: str, loop: Coroutine[Any, Any, None], expected: Expectation | None = None
    ) -> Coroutine[Any, Any, None]:
        """Return a coroutine that runs the loop and notes its steps."""
        entry = self._loops[name] = _Loop(loop, expected, self._clock())
        return _Followed(entry, self._clock)

    def stepping(self) -> tuple[str, float] | None:
        """Return the loop that is in the middle of a step, and for how many seconds."""
        for name, loop in list(self._loops.items()):
            since = loop.in_step_since
            if since is not None:
                return name, self._clock() - since
        return None

    def stuck(self) -> list[Stuck]:
        """Return the loops that should have taken a step by now."""
        found = []
        for name, loop in self._loops.items():
            limit = loop.expected() if loop.expected is not None else None
            seconds = self._clock() - loop.stepped_at
            if limit is not None and seconds > limit:
                found.append(Stuck(name, seconds, where(loop.inner)))
        return found

    def freeze(self, name: str, kind: FreezeKind) -> None:
        """Make a loop hang, or block everything, at its next step. For tests of the watchdog.

        :raises KeyError: there is no such loop.
        """
        self._loops[name].freeze = kind


class _Followed(Coroutine[Any, Any, None]):
    """A coroutine around another one."""

    def __init__(self, loop: _Loop, clock: Callable[[], float]) -> None:
        self._loop = loop
        self._clock = clock
        self._hung: asyncio.Future[None] | None = None

    def send(self, value: Any) -> Any:
        loop = self._loop
        loop.in_step_since = self._clock()
        try:
            if loop.freeze == "block":
                time.sleep(86_400)
            if loop.freeze == "hang":
                return self._hang()
            result = loop.inner.send(value)
            loop.stepped_at = self._clock()
            return result
        finally:
            loop.in_step_since = None

    def _hang(self) -> Any:
        self._hung = self._hung or asyncio.get_running_loop().create_future()
        return next(iter(self._hung.__await__()))

    def throw(self, *args: Any) -> Any:
        return self._loop.inner.throw(*args)

    def close(self) -> None:
        self._loop.inner.close()

    def __await__(self) -> Generator[Any, Any, None]:
        return (yield from self._loop.inner.__await__())


def where(awaited: Any) -> str:
    """Describe where a coroutine waits: each function on the way, innermost last."""
    places = []
    for _ in range(30):
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None)
        if frame is None:
            break
        places.append(f"{frame.f_code.co_name} ({frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno})")
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None)
    return " > ".join(places) or "unknown"


async def run_guarded(
    loops: dict[str, Coroutine[Any, Any, None]],
    until: asyncio.Event,
    progress: Progress | None = None,
    expected: dict[str, Expectation] | None = None,
) -> None:
    """Run loops side by side until ``until`` is set, then cancel them.

    :param progress: is told of their steps.
    :param expected: how long each may go without one; a loop that is not named may wait as long as it likes.
    :raises LoopEnded: one of them returned or raised; the message names it and the cause is attached.
    """
    if progress is not None:
        loops = {name: progress.follow(name, loop, (expected or {}).get(name)) for name, loop in loops.items()}
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
