"""Messages to the service manager through sd_notify."""

from __future__ import annotations

import os

import sdnotify


class SystemdNotifier:
    """Speaks to systemd if it started us (``NOTIFY_SOCKET``), to nobody otherwise.

    The variable is removed from the environment, so that no child can speak in our name.
    """

    def __init__(self) -> None:
        # Without the variable the library would leave a socket behind for the garbage collector.
        self._notifier = sdnotify.SystemdNotifier() if os.environ.get("NOTIFY_SOCKET") else None
        os.environ.pop("NOTIFY_SOCKET", None)
        self._last = ""

    def ready(self, status: str) -> None:
        """Say that start-up is complete."""
        self._notify(f"READY=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        """Say in one line what goes on, if that has changed."""
        if status != self._last:
            self._last = status
            self._notify(f"STATUS={status}")

    def stopping(self, status: str) -> None:
        """Say that the way out has begun."""
        self._notify(f"STOPPING=1\nSTATUS={status}")

    def _notify(self, message: str) -> None:
        if self._notifier is not None:
            self._notifier.notify(message)
