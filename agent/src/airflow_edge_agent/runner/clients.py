"""The daemons that are connected to a runner: what they say, what they are told, and who of them may."""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections.abc import Callable
from typing import TypeAlias

from . import sockets, wire

_MOST_CLIENTS = 8
_MOST_UNSENT_BYTES = 4 * 1024 * 1024
_RECEIVE_BYTES = 256 * 1024
_FAREWELL_SECONDS = 1.0


class Client:
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.lines = wire.LineBuffer()
        self.unsent = bytearray()
        self.closing = False
        self.watched = False
        """Whether the selector knows it."""
        self.deaf = False
        """It does not read any more. What it had written before it hung up is still to be read."""


Obey: TypeAlias = Callable[[Client, wire.Command], None]


class Clients:
    """All connections of one runner.

    :param allowed: users who may connect.
    :param greet: makes the first message of a connection.
    :param obey: does what a client says.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        *,
        allowed: frozenset[int],
        greet: Callable[[], wire.Hello],
        obey: Obey,
    ) -> None:
        self._selector = selector
        self._allowed = allowed
        self._greet = greet
        self._obey = obey
        self._clients: dict[int, Client] = {}
        self._reading = False

    def __len__(self) -> int:
        return len(self._clients)

    def accept(self, listener: socket.socket) -> None:
        """Let a client in, if it may."""
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        if sockets.peer_uid(connection) not in self._allowed or len(self._clients) >= _MOST_CLIENTS:
            connection.close()
            return
        connection.settimeout(0)
        client = Client(connection)
        self._clients[connection.fileno()] = client
        self.send(client, self._greet())

    def read(self) -> None:
        """From now on, read what they say. Before that, the kernel keeps it."""
        self._reading = True
        for client in list(self._clients.values()):
            self._watch(client)

    def attend(self, client: Client, events: int) -> None:
        """Deal with a client that the selector has named."""
        if events & selectors.EVENT_WRITE:
            self._flush(client)
        if not events & selectors.EVENT_READ or client.closing:
            return
        try:
            data = client.connection.recv(_RECEIVE_BYTES)
            if not data:
                self._drop(client)
                return
            for line in client.lines.feed(data):
                self._hear(client, line)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
        except wire.WireError as error:
            # Where one line is broken the next begin is not to be trusted.
            client.closing = True
            self.send(client, wire.Refused(job_id=None, detail=str(error)))

    def broadcast(self, event: wire.Event) -> None:
        """Tell all."""
        for client in list(self._clients.values()):
            self.send(client, event)

    def send(self, client: Client, event: wire.Event) -> None:
        """Tell one."""
        if client.deaf:
            return
        client.unsent += wire.encode(event)
        self._flush(client)

    def close(self) -> None:
        """Say what is left to say, and hang up."""
        # The last events are worth a moment, a daemon that does not read is not worth more.
        for client in list(self._clients.values()):
            with contextlib.suppress(OSError):
                client.connection.settimeout(_FAREWELL_SECONDS)
                client.connection.sendall(client.unsent)
                client.connection.close()

    def _hear(self, client: Client, line: bytes) -> None:
        try:
            command = wire.decode_command(line)
        except wire.UnknownMessage as error:
            self.send(client, wire.Refused(job_id=None, detail=str(error)))
            return
        self._obey(client, command)

    def _flush(self, client: Client) -> None:
        try:
            while client.unsent:
                sent = client.connection.send(client.unsent)
                del client.unsent[:sent]
        except BlockingIOError:
            pass
        except OSError:
            client.deaf = True
            client.unsent.clear()
        if len(client.unsent) > _MOST_UNSENT_BYTES or (client.closing and not client.unsent):
            self._drop(client)
            return
        self._watch(client)

    def _watch(self, client: Client) -> None:
        wanted = selectors.EVENT_READ if self._reading else 0
        if client.unsent:
            wanted |= selectors.EVENT_WRITE
        if client.watched and wanted:
            self._selector.modify(client.connection, wanted, client)
        elif client.watched:
            self._selector.unregister(client.connection)
        elif wanted:
            self._selector.register(client.connection, wanted, client)
        client.watched = bool(wanted)

    def _drop(self, client: Client) -> None:
        if self._clients.pop(client.connection.fileno(), None) is not None:
            if client.watched:
                self._selector.unregister(client.connection)
            client.connection.close()
