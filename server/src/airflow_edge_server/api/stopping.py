"""Learns that the api-server has been told to stop, before the server waits for its requests to end."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopNotice:
    """Calls back on the signals that end a server, and passes them on to the server's own handlers.

    uvicorn ends the lifespan only after the last request has ended, and a waiting poll is one: without this, a stop
    would take as long as the longest poll. Signals that nobody handles, and servers outside of the main thread, are
    left alone; there the polls end with their time.
    """

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._previous: dict[int, Any] = {}
        self._installed: Any = None

    def install(self) -> None:
        """Put our handler in front of the server's."""
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()

        def handler(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._callback)
            self._previous[number](number, frame)

        self._installed = handler
        for number in _SIGNALS:
            previous = signal.getsignal(number)
            if callable(previous):
                self._previous[number] = previous
                signal.signal(number, handler)

    def remove(self) -> None:
        """Restore the server's handlers, where ours is still in place."""
        for number, previous in self._previous.items():
            if signal.getsignal(number) is self._installed:
                signal.signal(number, previous)
