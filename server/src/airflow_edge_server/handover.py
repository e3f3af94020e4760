"""Hands complete logs over to Airflow's remote logging, so that they can be read without our tables.

Each api-server process does it, in a thread of its own: an upload may take long, and nothing else waits for it.
"""

from __future__ import annotations

import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from airflow_edge_server import compat, plainly
from airflow_edge_server.store import handover
from airflow_edge_server.store.logs import read_bytes
from airflow_edge_server.store.transaction import Sessions, read, write

log = plainly.logger(__name__)

PAUSE_SECONDS = 5.0
"""How often it is looked for logs that are complete."""

STOP_SECONDS = 2.0
"""How long a stop waits for an upload under way. What is broken off is done again, here or elsewhere."""

_TAIL_LINES = 1_000


class LogHandOver:
    """Takes one log after the other.

    :param target: returns Airflow's remote log handler; ``None``: there is none, and nothing to do.
    """

    def __init__(self, sessions: Sessions, target: Callable[[], Any] = compat.remote_log_io) -> None:
        self._sessions = sessions
        self._target = target
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, if there is somewhere to hand logs over to."""
        if self._target() is not None:
            self._thread = threading.Thread(target=self._run, name="edge-agents-logs", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End, without waiting long for an upload."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def once(self) -> bool:
        """Hand one log over, if one is due; return whether there may be another.

        :raises sqlalchemy.exc.SQLAlchemyError: when the database refuses.
        """
        now = datetime.now(UTC)
        # Only a look, most of the time: SQLite has one writer.
        if not read(self._sessions, lambda session: handover.waits(session, now)):
            return False
        due = write(self._sessions, lambda session: handover.claim(session, now))
        if isinstance(due, handover.NothingDue):
            return due.more
        try:
            self._hand_over(due)
        except Exception as error:  # noqa: BLE001  a handler may be anybody's, and so may what it raises
            again = write(self._sessions, lambda session: handover.put_off(session, due, datetime.now(UTC)))
            log.warning(
                "Log %s could not be handed over to remote logging (%s: %s); %s",
                due.path,
                type(error).__name__,
                str(error)[:500],
                "it will be tried again" if again else "it stays in the metadata database",
            )
        else:
            write(self._sessions, lambda session: handover.settle(session, due, "done", datetime.now(UTC)))
        return True

    def _run(self) -> None:
        while not self._stop.is_set():
            more = False
            try:
                more = self.once()
            except SQLAlchemyError as error:
                # Also while the tables are not there yet: the agent API says so.
                log.debug("No log is handed over: %s", type(error).__name__)
            if not more:
                self._stop.wait(PAUSE_SECONDS)

    def _hand_over(self, due: handover.DueLog) -> None:
        path = PurePosixPath(due.path)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{due.path} is no path below the log folder")
        remote = self._target()
        with tempfile.TemporaryDirectory(prefix="edge-agent-log-", ignore_cleanup_errors=True) as folder:
            file = Path(folder) / path
            file.parent.mkdir(parents=True)
            last = _assemble(file, due)
            # Some handlers append to what is there: what arrived before its hand-over was noted is not sent twice.
            if due.tries == 0 or not _arrived(remote, due.path, last):
                compat.rebased_log_io(remote, Path(folder)).upload(due.path, None)
            if not _arrived(remote, due.path, last):
                raise LookupError(f"{type(remote).__name__} does not show it after the upload")


def _assemble(file: Path, due: handover.DueLog) -> str:
    """Write the whole log into a file; return its last line with something on it."""
    with file.open("wb") as target:
        for job_id in due.job_ids:
            for piece in read_bytes(job_id):
                target.write(piece)
    last = ""
    with file.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for line in lines:
            last = line.strip() or last
    return last


def _arrived(remote: Any, path: str, last: str) -> bool:
    """Tell whether the last line of a log is among the last ones that the handler shows."""
    lines = deque((line.strip() for line in _shown(remote, path)), _TAIL_LINES)
    return last in lines


def _shown(remote: Any, path: str) -> Iterator[str]:
    found: Any = None
    with suppress(FileNotFoundError):
        reader = getattr(remote, "stream", None) or remote.read
        _, found = reader(path, None)
    for part in found or ():
        for piece in (part,) if isinstance(part, str) else part:
            yield from str(piece).split("\n")
