"""Messages to the service manager through sd_notify."""

from __future__ import annotations

import os
import time

import sdnotify

_LONGEST_STATUS = 400


class SystemdNotifier:
    """Speaks to systemd if it started us (``NOTIFY_SOCKET``), to nobody otherwise.

    The variables are removed from the environment, so that no child can speak in our name or take the watchdog for its
    own.
    """

    def __init__(self) -> None:
        # Without the variable the library would leave a socket behind for the garbage collector.
        self._notifier = sdnotify.SystemdNotifier() if os.environ.get("NOTIFY_SOCKET") else None
        if self._notifier is not None and self._notifier.socket is not None:
            # A service manager that does not listen right now must not stop us.
            self._notifier.socket.settimeout(0)
        self.watchdog_seconds = _watchdog_seconds() if self._notifier is not None else None
        """Within this time systemd wants a sign of life; ``None``: it wants none."""
        for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
            os.environ.pop(name, None)
        self._last = ""

    @property
    def present(self) -> bool:
        """Whether a service manager listens."""
        return self._notifier is not None

    def ready(self, status: str) -> None:
        """Say that start-up, or a reload, is complete."""
        self._last = _line(status)
        self._notify(f"READY=1\nSTATUS={self._last}")

    def status(self, status: str) -> None:
        """Say in one line what goes on, if that has changed."""
        status = _line(status)
        if status != self._last:
            self._last = status
            self._notify(f"STATUS={status}")

    def reloading(self) -> None:
        """Say that the configuration is being read again; :meth:`ready` ends it."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._notify(f"RELOADING=1\nMONOTONIC_USEC={microseconds}")

    def stopping(self, status: str) -> None:
        """Say that the way out has begun."""
        self._last = _line(status)
        self._notify(f"STOPPING=1\nSTATUS={self._last}")

    def extend(self, seconds: float) -> None:
        """Ask for this much time, from now on, for the step under way."""
        self._notify(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def alive(self) -> None:
        """Give the sign of life that the watchdog waits for."""
        self._notify("WATCHDOG=1")

    def close(self) -> None:
        """Close the socket."""
        if self._notifier is not None and self._notifier.socket is not None:
            self._notifier.socket.close()

    def _notify(self, message: str) -> None:
        if self._notifier is not None:
            # The library sends Latin-1 and would drop what that does not have; systemd wants UTF-8.
            self._notifier.notify(message.encode().decode("latin-1"))


def _line(text: str) -> str:
    return " ".join(text.split())[:_LONGEST_STATUS]


def _watchdog_seconds() -> float | None:
    try:
        seconds = int(os.environ["WATCHDOG_USEC"]) / 1_000_000
        meant_for = int(os.environ.get("WATCHDOG_PID") or os.getpid())
    except (KeyError, ValueError):
        return None
    return seconds if seconds > 0 and meant_for == os.getpid() else None
