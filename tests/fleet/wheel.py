"""One timer for thousands of agents."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable

SLOT_SECONDS = 0.05


class Wheel:
    """Calls back at about the time asked for, to the length of a slot. Needs a running event loop."""

    def __init__(self) -> None:
        self._slots: defaultdict[int, list[Callable[[], None]]] = defaultdict(list)
        self._at = self._now()
        self._timer: asyncio.TimerHandle | None = None
        self._turn()

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call once, not before so many seconds have passed."""
        self._slots[self._now() + 1 + max(0, round(seconds / SLOT_SECONDS))].append(call)

    def stop(self) -> None:
        """Call nothing any more."""
        self._slots.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _turn(self) -> None:
        now = self._now()
        while self._at <= now:
            for call in self._slots.pop(self._at, ()):
                call()
            self._at += 1
        self._timer = asyncio.get_running_loop().call_later(SLOT_SECONDS, self._turn)

    @staticmethod
    def _now() -> int:
        return int(time.monotonic() / SLOT_SECONDS)
