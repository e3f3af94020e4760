"""A selector that notices the end of a child process at once.

The Task SDK's supervisor waits in a selector on the sockets of the task's process. When that process ends, the kernel
closes its sockets a moment before it can be waited for. The supervisor then sees all sockets closed and the process
still alive, and waits again, on nothing, for up to ``[workers] min_heartbeat_interval``. With this selector such a wait
ends as soon as a child can be waited for. A supervisor on a thread, which cannot wait for signals, watches a handle of
its task's process along with the sockets.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Iterator
from typing import ClassVar

from . import threaded

_FIRST_SLICE_SECONDS = 0.01
_LONGEST_SLICE_SECONDS = 1.0
_NO_CHILDREN = -1


class WakingSelector(selectors.DefaultSelector):
    """A default selector whose wait on nothing is a wait for a child."""

    pending_signal: ClassVar[int | None] = None
    """A signal that came too early for the supervisor's own handler; sent again from inside its loop."""

    def __init__(self) -> None:
        super().__init__()
        self._announced: set[int] = set()
        supervision = threaded.current()
        self._on_thread = supervision is not None
        self._handle = -1 if supervision is None else supervision.handle
        if self._handle >= 0:
            self.register(self._handle, selectors.EVENT_READ)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for events, and for the end of a child: on a thread always, else when nothing is registered."""
        if self._on_thread:
            return self._select_with_handle(timeout)
        if (number := WakingSelector.pending_signal) is not None:
            WakingSelector.pending_signal = None
            signal.raise_signal(number)
        if self.get_map():
            return super().select(timeout)
        self._wait_for_child(timeout)
        return []

    def _select_with_handle(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(timeout)
        others = [(key, event) for key, event in events if key.fd != self._handle]
        if len(others) != len(events):
            # Said once: it stays readable from now on, and the caller looks after the process by itself.
            self.unregister(self._handle)
            self._handle = -1
        return others

    def _wait_for_child(self, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        piece = _FIRST_SLICE_SECONDS
        # Blocked for the time of the wait only: a blocked signal stays pending, so an end between the look and the
        # wait is not missed, and no child inherits a mask or a handler.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        try:
            while not self._child_ended():
                if deadline is not None:
                    piece = min(piece, deadline - time.monotonic())
                    if piece <= 0:
                        return
                # In pieces, because another thread may take the signal away.
                signal.sigtimedwait([signal.SIGCHLD], piece)
                piece = min(piece * 2, _LONGEST_SLICE_SECONDS)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _child_ended(self) -> bool:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            pid = _NO_CHILDREN
        else:
            if ended is None:
                return False
            pid = ended.si_pid
        # The same again: nobody waits for it, so it is not what the supervisor is interested in.
        if pid in self._announced:
            return False
        self._announced.add(pid)
        return True


@contextlib.contextmanager
def as_default_selector() -> Iterator[None]:
    """Make :class:`WakingSelector` what modules that are imported meanwhile get as ``selectors.DefaultSelector``."""
    original = selectors.DefaultSelector
    selectors.DefaultSelector = WakingSelector  # type: ignore[misc] # replacing it is the purpose
    try:
        yield
    finally:
        selectors.DefaultSelector = original  # type: ignore[misc] # the original comes back
