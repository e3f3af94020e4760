"""Feeds a target with what Hypothesis and chance think of."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import psutil
from hypothesis import HealthCheck, Phase, given, seed, settings

from fuzz.material import Thought, thoughts

EXAMPLES = 100
"""In one round. Hypothesis remembers what it has thought of in a round, so one for all would grow."""

MOST_FINDINGS = 20
"""Enough to be going on with."""

WARM_UP = 0.3
"""Part of the frames after which memory has to stay as it is."""


ENOUGH = 10
"""Measurements; fewer make no line."""


class FindingError(AssertionError):
    """Something that must not happen."""


class Target(Protocol):
    """One end of the wire."""

    name: str
    seen: Any

    async def open(self) -> None:
        """Begin."""

    async def take(self, thought: Thought) -> int:
        """Feed it, and return with how many frames. Whatever is raised is a finding."""

    async def close(self) -> None:
        """End."""


@dataclass
class Total:
    """What became of a target."""

    name: str
    frames: int = 0
    seconds: float = 0.0
    findings: dict[str, str] = field(default_factory=dict)
    """By their last line."""
    memory: list[tuple[int, int]] = field(default_factory=list)
    """Bytes resident after so many frames."""
    blocks: list[tuple[int, int]] = field(default_factory=list)
    """Pieces of memory that Python's objects have after so many frames."""
    seen: Any = None

    def growth(self, points: list[tuple[int, int]]) -> float:
        """Return what 100,000 frames add once all has warmed up: the slope of a line through what was measured."""
        points = [(x, y) for x, y in points if x >= WARM_UP * self.frames]
        if len(points) < ENOUGH:
            return 0.0
        middle_x = sum(x for x, _ in points) / len(points)
        middle_y = sum(y for _, y in points) / len(points)
        square = sum((x - middle_x) ** 2 for x, _ in points)
        return sum((x - middle_x) * (y - middle_y) for x, y in points) / square * 100_000


def run(target: Target, frames: int, *, seed_number: int, tell: Callable[[Total], None] = lambda _: None) -> Total:
    """Feed a target with at least so many frames."""
    total = Total(target.name, seen=target.seen)
    started = time.monotonic()
    with asyncio.Runner() as runner:
        runner.run(target.open())
        try:
            rounds = 0
            before = -1
            # A target that takes nothing any more has been found out.
            while before < total.frames < frames and len(total.findings) < MOST_FINDINGS:
                before = total.frames
                _round(runner, target, total, frames, seed_number * 1_000_003 + rounds)
                rounds += 1
                gc.collect()
                with contextlib.suppress(AttributeError, OSError):
                    # Free memory that the allocator keeps is no growth.
                    ctypes.CDLL(None).malloc_trim(0)
                total.blocks.append((total.frames, sys.getallocatedblocks()))
                total.memory.append((total.frames, psutil.Process().memory_info().rss))
                total.seconds = time.monotonic() - started
                tell(total)
        finally:
            runner.run(target.close())
    return total


def _round(runner: asyncio.Runner, target: Target, total: Total, frames: int, number: int) -> None:
    @seed(number)
    @settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )
    @given(thoughts())
    def feed(thought: Thought) -> None:
        if total.frames >= frames:
            return
        try:
            total.frames += runner.run(target.take(thought))
        except Exception as error:  # noqa: BLE001  everything is a finding
            last = f"{type(error).__name__}: {error}"[:300]
            place = traceback.extract_tb(error.__traceback__)[-1]
            key = f"{place.filename.rsplit('/', 1)[-1]}:{place.lineno} {last}"
            total.findings.setdefault(key, f"seed {number}\n" + "".join(traceback.format_exception(error)[-12:]))

    feed()
