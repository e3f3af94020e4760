"""Signs of life to the service manager, on evidence only.

The loop sends one as long as no loop is stuck. A thread sees to it that the name of what is stuck is in the log before
the service manager ends us, also when the event loop itself does not get round to anything.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable

import structlog

from airflow_edge_agent.ports import Notifier
from airflow_edge_agent.runtime.guard import Progress

log = structlog.get_logger()

BEATS = 4
"""Signs of life per interval of the watchdog: one may be late, and none is to be wanted for long."""

Shout = Callable[[str], None]
"""Says something at once and from any thread, past everything that may be stuck."""


class Watchdog:
    """Feeds the service manager's watchdog.

    :param interval_seconds: after this long without a sign of life it ends us.
    """

    def __init__(self, progress: Progress, notifier: Notifier, interval_seconds: float, shout: Shout) -> None:
        self._progress = progress
        self._notifier = notifier
        self._interval = interval_seconds
        self._shout = shout
        self._beat_at = time.monotonic()
        self._ended = threading.Event()
        self._said: set[str] = set()

    async def run(self) -> None:
        """Give signs of life until cancelled."""
        main = threading.get_ident()
        thread = threading.Thread(target=self._watch, args=(main,), name="watchdog", daemon=True)
        thread.start()
        try:
            while True:
                self._beat()
                await asyncio.sleep(self._interval / BEATS)
        finally:
            self._ended.set()

    def _beat(self) -> None:
        self._beat_at = time.monotonic()
        stuck = self._progress.stuck()
        for loop in stuck:
            if loop.name not in self._said:
                self._said.add(loop.name)
                log.error(
                    "a loop is stuck: gives the watchdog no more signs of life",
                    loop=loop.name,
                    seconds=round(loop.seconds),
                    waits_in=loop.where,
                    edge_event="stuck",
                )
        if not stuck:
            self._said.clear()
            self._notifier.alive()

    def _watch(self, main_thread: int) -> None:
        said = False
        while not self._ended.wait(self._interval / BEATS):
            late = time.monotonic() - self._beat_at
            if late < self._interval / 2:
                said = False
            elif not said:
                said = True
                self._shout(self._describe(main_thread, late))

    def _describe(self, main_thread: int, late: float) -> str:
        step = self._progress.stepping()
        frame = sys._current_frames().get(main_thread)  # noqa: SLF001 -- the only way to another thread's stack
        stack = "".join(traceback.format_stack(frame)) if frame is not None else "unknown"
        who = f"the {step[0]} loop is stuck and blocks the event loop" if step else "the event loop is blocked"
        return f"{who}, for {late:.0f} s now; the watchdog will end the daemon. It is here:\n{stack}"
