"""Hears PostgreSQL's notifications: one connection and one thread per api-server process."""

from __future__ import annotations

import os
import random
import select
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine

from airflow_edge_server import plainly
from airflow_edge_server.store.transaction import Sessions, write
from airflow_edge_server.store.wakeup import CHANNEL, announce

log = plainly.logger(__name__)

PROBE_SECONDS = 30.0
"""How often the listener proves to itself that notifications come through."""

PROBE_PATIENCE_SECONDS = 5.0
"""How long a probe may take."""

FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 30.0

_PROBE = "probe "


class _DeafError(Exception):
    """The connection stands, but nothing is heard on it."""


class Listener:
    """Listens for what other processes announce, and comes back by itself when the connection is lost.

    A connection pool between us and the database may swallow notifications, so the listener counts as live only while
    it hears its own probes.

    :param heard: called with each topic, in the listener's thread.
    :param turned: called when it becomes live or ceases to be, likewise.
    """

    def __init__(self, sessions: Sessions, *, heard: Callable[[str], None], turned: Callable[[bool], None]) -> None:
        self._sessions = sessions
        self._heard = heard
        self._turned = turned
        self._live = False
        self._stopping = threading.Event()
        self._stop_reader, self._stop_writer = os.pipe()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start listening, if the database can notify. Opens nothing itself."""
        self._thread = threading.Thread(target=self._run, name="edge-agents-listener", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and its connection. Does not wait longer than a moment."""
        self._stopping.set()
        os.write(self._stop_writer, b"x")
        if self._thread is not None:
            self._thread.join(2)
            if self._thread.is_alive():
                # It hangs in the driver; its pipe must stay open, and ends with the process.
                return
        os.close(self._stop_writer)
        os.close(self._stop_reader)

    def _run(self) -> None:
        retry = FIRST_RETRY_SECONDS
        fault = ""
        while not self._stopping.is_set():
            try:
                with self._sessions() as session:
                    engine = session.get_bind()
                if not isinstance(engine, Engine) or engine.dialect.name != "postgresql":
                    return
                self._listen(engine)
            except _DeafError:
                text = "notifications do not come through (is there a connection pool in between?)"
            except Exception as error:  # noqa: BLE001  of any driver; without this thread the dispatcher still polls
                text = type(getattr(error, "orig", None) or error).__name__
            else:
                text = ""
            if self._live:
                retry = FIRST_RETRY_SECONDS
            self._turn(live=False)
            if text and text != fault:
                log.warning("No notifications from the database (%s); looking for jobs more often instead.", text)
            fault = text
            self._stopping.wait(random.uniform(0.5, 1) * retry)  # noqa: S311  no secret
            retry = min(retry * 2, LONGEST_RETRY_SECONDS)

    def _turn(self, *, live: bool) -> None:
        if live != self._live:
            self._live = live
            self._turned(live)

    def _listen(self, engine: Engine) -> None:
        pooled = engine.raw_connection()
        connection: Any = pooled.driver_connection
        # It is held for as long as the process lives: no connection of the pool's.
        pooled.detach()
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(f"LISTEN {CHANNEL}")
            self._hear(connection)
        finally:
            connection.close()

    def _hear(self, connection: Any) -> None:
        answered_at = time.monotonic() - PROBE_SECONDS
        probe, sent_at = "", 0.0
        while not self._stopping.is_set():
            now = time.monotonic()
            if probe and now - sent_at > PROBE_PATIENCE_SECONDS:
                raise _DeafError
            if not probe and now - answered_at >= PROBE_SECONDS:
                probe, sent_at = _PROBE + uuid.uuid4().hex, now
                self._send(probe)
            wait = PROBE_PATIENCE_SECONDS if probe else answered_at + PROBE_SECONDS - now
            ready, _, _ = select.select([connection.fileno(), self._stop_reader], [], [], max(wait, 0.05))
            if not ready:
                continue
            for topic in _received(connection):
                if topic == probe:
                    probe, answered_at = "", time.monotonic()
                    self._turn(live=True)
                elif not topic.startswith(_PROBE):
                    self._heard(topic)

    def _send(self, probe: str) -> None:
        write(self._sessions, lambda session: announce(session, probe))


def _received(connection: Any) -> list[str]:
    """Return the topics that have come; of psycopg2 or psycopg."""
    low = getattr(connection, "pgconn", None)
    if low is not None and hasattr(low, "consume_input"):
        low.consume_input()
        topics = []
        while (notice := low.notifies()) is not None:
            topics.append(notice.extra.decode())
        return topics
    connection.poll()
    topics = [notice.payload for notice in connection.notifies]
    connection.notifies.clear()
    return topics
