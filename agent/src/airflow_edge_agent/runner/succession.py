"""A runner and its successor: the same program, started again from what is on disk now, while the old one has jobs.

The successor inherits the listening socket and the locks, warms up, and says so through a pipe. Only then does the
old runner step back: it takes no new connections on that socket, opens one of its own where a daemon finds it, and ends
with its last job. A successor that does not get that far changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Sequence

READY = b"ready"


class Successor:
    """A runner that is to take over from this one."""

    def __init__(
        self,
        *,
        program: Sequence[str],
        options: Sequence[str],
        listener: int,
        locks: Sequence[int],
        notify_address: str,
    ) -> None:
        """Start it.

        :param program: begin of its command line: what to execute, with what it needs to find itself.
        :param options: the rest, without what is handed over.
        :raises OSError: it cannot be started.
        """
        self._ready_from, ready_to = os.pipe()
        handed = [listener, *locks, ready_to]
        command = [*program, *options]
        command += [f"--listen-fd={listener}", f"--ready-fd={ready_to}", f"--predecessor={os.getpid()}"]
        command += [f"--lock-fd={lock}" for lock in locks]
        environment = dict(os.environ)
        if notify_address:
            environment["NOTIFY_SOCKET"] = notify_address
        try:
            self._process = subprocess.Popen(  # noqa: S603 -- our own program, with our own Python
                command, stdin=subprocess.DEVNULL, env=environment, pass_fds=handed, start_new_session=True
            )
        except OSError:
            os.close(self._ready_from)
            raise
        finally:
            os.close(ready_to)
        os.set_blocking(self._ready_from, False)

    @property
    def pid(self) -> int:
        """Its pid."""
        return self._process.pid

    def fileno(self) -> int:
        """Return what becomes readable when it is ready or has failed."""
        return self._ready_from

    def is_ready(self) -> bool:
        """Tell whether it can take over; ``False`` once it is readable means that it never will."""
        try:
            return os.read(self._ready_from, len(READY)) == READY
        except OSError:
            return False

    def let_go(self) -> None:
        """Have nothing more to do with it: it lives on, and whoever adopts it waits for it."""
        os.close(self._ready_from)
        self._process.returncode = 0

    def abandon(self) -> None:
        """Kill one that did not become ready."""
        self._process.kill()
        self._process.wait()
        os.close(self._ready_from)


def say_ready(descriptor: int) -> None:
    """Tell the predecessor that this runner can take over. It may be gone: then there is nothing to take."""
    try:
        os.write(descriptor, READY)
    except OSError:
        pass
    finally:
        os.close(descriptor)


class Predecessor:
    """The runner before this one. Under systemd it lives in the same unit, which ends when the main process does."""

    def __init__(self, pid: int) -> None:
        try:
            self._handle = os.pidfd_open(pid) if pid and os.getppid() == pid else -1
        except OSError:
            self._handle = -1

    def stop(self) -> None:
        """Tell it to end, with its jobs, as by SIGTERM."""
        if self._handle >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGTERM)

    def has_ended(self) -> bool:
        """Tell whether it is gone."""
        if self._handle >= 0 and select.select([self._handle], [], [], 0)[0]:
            os.close(self._handle)
            self._handle = -1
        return self._handle < 0

    def fileno(self) -> int:
        """Return what becomes readable when it ends; negative when it has."""
        return self._handle
