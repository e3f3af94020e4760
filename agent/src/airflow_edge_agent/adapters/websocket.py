"""The WebSocket carrier: one connection, on which both sides speak whenever they like.

The library is imported with this module, and this module only when the carrier is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidStatus,
    ProxyError,
    WebSocketException,
)
from websockets.extensions import ClientExtensionFactory
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from airflow_edge_agent import __version__
from airflow_edge_agent.adapters.batches import groups
from airflow_edge_agent.adapters.credential import Prover
from airflow_edge_agent.adapters.faults import (
    broken,
    connect_fault,
    connect_timeout,
    not_ours,
    proxy_fault,
    silent,
    status_fault,
    tls_fault,
)
from airflow_edge_agent.adapters.network import Network, proxy_for
from airflow_edge_agent.ports import (
    CarrierUnsupported,
    CredentialRefused,
    Presence,
    ServerLeft,
    Throttled,
    TransportError,
)
from airflow_edge_agent.protocol import API_PREFIX, CHANNEL_PATH
from airflow_edge_agent.protocol.codec import FrameError, decode_batch, decode_server_frame, encode_batch
from airflow_edge_agent.protocol.frames import MAX_BATCH_BYTES, AgentFrame, AnyFrame, Hello, ServerFrame, Welcome

_OPEN_SECONDS = 10.0
_ANSWER_SECONDS = 15.0
"""How long the answer to a hello may take."""
_PING_SECONDS = 20.0
"""Often enough for any NAT, and how long a pong may take."""
_CLOSE_SECONDS = 2.0

_MAX_SEND_BYTES = 256 * 1024
"""Small messages: a ping must not wait long behind one on a slow line."""
_MAX_UNSENT_BYTES = 128 * 1024
_TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25)

_WINDOW_BITS = 12
_MEMORY_LEVEL = 5

_LEAVING = frozenset({1001, 1012})
"""Close codes of a server that is stopped or restarted in good order."""


def extensions() -> list[ClientExtensionFactory]:
    """Return what is asked of the server: compression of each message by itself, in small windows.

    Without that, either side keeps what it compresses with for as long as the connection stands, which at the server
    would be most of what a connection takes.
    """
    return [
        ClientPerMessageDeflateFactory(
            server_no_context_takeover=True,
            client_no_context_takeover=True,
            server_max_window_bits=_WINDOW_BITS,
            client_max_window_bits=_WINDOW_BITS,
            compress_settings={"memLevel": _MEMORY_LEVEL},
        )
    ]


class _Connect(connect):
    """The library's way to a connection, without following redirects: they would take our proof along."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class WebSocketTransport:
    """Way to the server over a WebSocket."""

    def __init__(self, server_url: str, prover: Prover, network: Network) -> None:
        """Prepare; nothing is sent yet.

        :raises TransportError: something of ``network`` cannot be used.
        """
        self._url = f"{server_url}{API_PREFIX}{CHANNEL_PATH}"
        self._prover = prover
        self._proxy = proxy_for(server_url)
        self._options: dict[str, Any] = {"ssl": network.tls} if self._url.startswith("https:") else {}

    async def connect(self, hello: Hello, presence: Presence) -> WebSocketLink:
        """Open a connection and say hello.

        :raises CarrierUnsupported: the server is there, but WebSockets do not come through to it.
        :raises TransportError: no server there, or it is not ours.
        """
        connection = await self._open()
        link = WebSocketLink(connection, self._url)
        try:
            await link.send([hello])
            async with asyncio.timeout(_ANSWER_SECONDS):
                frames = await link.receive()
        except TimeoutError:
            await link.close()
            raise CarrierUnsupported(
                f"{self._url}: opened, but nothing comes through; is a proxy in between?"
            ) from None
        except (CredentialRefused, ServerLeft):
            await link.close()
            raise
        except TransportError as error:
            await link.close()
            raise _unsupported(error) from None
        except asyncio.CancelledError:
            await link.close()
            raise
        welcome = next((frame for frame in frames if isinstance(frame, Welcome)), None)
        link.begin(frames, presence, welcome)
        return link

    async def probe(self) -> None:
        """Find out whether a connection can be opened, and close it again.

        :raises TransportError: it cannot.
        """
        await WebSocketLink(await self._open(), self._url).close()

    async def close(self) -> None:
        """Nothing is held between connections."""

    async def _open(self, *, again: bool = False) -> ClientConnection:
        dialled: list[bool] = []

        class Noted(ClientConnection):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                dialled.append(True)
                super().connection_made(transport)

        try:
            connection = await _Connect(
                self._url.replace("http", "ws", 1),
                additional_headers={"Authorization": self._prover.header()},
                user_agent_header=f"airflow-edge-agent/{__version__}",
                proxy=self._proxy,
                open_timeout=_OPEN_SECONDS,
                ping_interval=_PING_SECONDS,
                ping_timeout=_PING_SECONDS,
                close_timeout=_CLOSE_SECONDS,
                max_size=MAX_BATCH_BYTES,
                max_queue=4,
                compression=None,
                extensions=extensions(),
                create_connection=Noted,
                **self._options,
            )
        except (WebSocketException, OSError, ssl.SSLError) as error:  # TimeoutError is an OSError
            if not again and isinstance(error, InvalidStatus) and self._prover.was_late(_challenge(error)):
                return await self._open(again=True)
            raise self._why_not(error, dialled=bool(dialled)) from None
        raw = connection.transport.get_extra_info("socket")
        if raw is not None:
            # Or megabytes would pile up in the kernel in front of a ping.
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _MAX_UNSENT_BYTES)
        return connection

    def _why_not(self, error: Exception, *, dialled: bool) -> TransportError:
        """Turn the library's exception into one line, and decide whether another carrier may get through."""
        text = " ".join(str(error).split())[:300] or type(error).__name__
        match error:
            case InvalidStatus():
                response = error.response
                fault = status_fault(
                    self._url,
                    response.status_code,
                    response.reason_phrase,
                    location=response.headers.get("location"),
                    retry_after=response.headers.get("retry-after"),
                    challenge=_challenge(error),
                )
                return fault if isinstance(fault, CredentialRefused | Throttled) else _unsupported(fault)
            case ProxyError():
                return proxy_fault(self._url, text)
        if not dialled:
            if isinstance(error, TimeoutError):
                return connect_timeout(self._url)
            return tls_fault(self._url, text) or connect_fault(self._url, error, text)
        match error:
            case TimeoutError():
                return _unsupported(silent(self._url))
            case InvalidHandshake():
                cause = error.__cause__
                if isinstance(cause, (EOFError, OSError)):
                    return _unsupported(broken(self._url, str(cause) or text))
                return _unsupported(not_ours(self._url, text))
            case _:
                return _unsupported(tls_fault(self._url, text) or broken(self._url, text))


class WebSocketLink:
    """A session over a WebSocket."""

    carrier = "websocket"

    def __init__(self, connection: ClientConnection, url: str) -> None:
        self._connection = connection
        self._url = url
        self._session_id: str | None = None
        self._first: list[ServerFrame] | None = None
        self._signs_of_life: asyncio.Task[None] | None = None

    def begin(self, frames: list[ServerFrame], presence: Presence, welcome: Welcome | None) -> None:
        """Put the answer to the hello first, and tell of ourselves from now on if it is a welcome."""
        self._first = frames
        if welcome is not None:
            self._session_id = welcome.session_id
            every = welcome.intervals.heartbeat_seconds
            self._signs_of_life = asyncio.create_task(self._tell(presence, every), name="websocket signs of life")

    async def _tell(self, presence: Presence, every_seconds: float) -> None:
        # If the link breaks, whoever waits in receive() hears of it.
        with contextlib.suppress(TransportError):
            while True:
                await self.send(presence())
                await asyncio.sleep(every_seconds)

    async def send(self, frames: list[AgentFrame]) -> None:
        """Send frames in as few messages as their size allows.

        :raises TransportError: the link is broken.
        """
        for group in groups(frames, _MAX_SEND_BYTES):
            outgoing: list[AnyFrame] = list(group)
            try:
                await self._connection.send(encode_batch(outgoing, session_id=self._session_id), text=True)
            except ConnectionClosed as error:
                raise self._why_closed(error) from None

    async def receive(self) -> list[ServerFrame]:
        """Wait for frames.

        :raises TransportError: the link is broken.
        """
        if self._first is not None:
            first, self._first = self._first, None
            return first
        try:
            data = await self._connection.recv(decode=False)
            return [decode_server_frame(frame) for frame in decode_batch(data).frames]
        except ConnectionClosed as error:
            raise self._why_closed(error) from None
        except FrameError as error:
            raise not_ours(self._url, str(error)) from None

    async def close(self) -> None:
        """Close the connection, without waiting long for the other side."""
        if self._signs_of_life is not None:
            self._signs_of_life.cancel()
            # Not by suppressing CancelledError: that would swallow a cancellation of our own.
            await asyncio.gather(self._signs_of_life, return_exceptions=True)
        await self._connection.close()

    def _why_closed(self, error: ConnectionClosed) -> TransportError:
        if error.rcvd is not None:
            words = f"closed by the server: {error.rcvd.code} {error.rcvd.reason[:200]}".strip()
            if error.rcvd.code in _LEAVING:
                return ServerLeft(f"{self._url}: {words}; it comes back after a restart, or another takes over")
            return broken(self._url, words)
        if error.sent is not None:
            return broken(self._url, f"{error.sent.code} {error.sent.reason[:200]}")
        return broken(self._url, "no close frame")


def _challenge(error: InvalidStatus) -> str | None:
    found: str | None = error.response.headers.get("WWW-Authenticate")
    return found


def _unsupported(fault: TransportError) -> CarrierUnsupported:
    unsupported = CarrierUnsupported(str(fault))
    unsupported.retry_after_seconds = fault.retry_after_seconds
    return unsupported
