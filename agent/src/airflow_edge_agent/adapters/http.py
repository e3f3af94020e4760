"""The HTTP exchange carrier: frames in POST requests, answers held back until the server has something to say.

Two lanes share one pool of connections. The *poll* lane always has one request waiting at the server, so the server
can speak at any time. The *send* lane carries what happens here and is answered at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from pathlib import Path

import httpx

from airflow_edge_agent import __version__
from airflow_edge_agent.ports import CredentialRefused, Presence, TransportError
from airflow_edge_agent.protocol import API_PREFIX, EXCHANGE_PATH
from airflow_edge_agent.protocol.codec import FrameError, decode_batch, decode_server_frame, encode_batch
from airflow_edge_agent.protocol.frames import (
    MAX_BATCH_BYTES,
    MAX_FRAMES,
    AgentFrame,
    AnyFrame,
    Hello,
    ServerFrame,
    Welcome,
)

_SLACK_SECONDS = 15.0
"""How much later than promised an answer may come before the link counts as broken."""

_LEAST_POLL_SECONDS = 1.0
"""Least time between two polls if the first one brought nothing."""

_MAX_SEND_BYTES = MAX_BATCH_BYTES // 4
_MAX_RETRY_AFTER_SECONDS = 300.0


class HttpTransport:
    """Way to the server over HTTP/1.1."""

    def __init__(self, server_url: str, token: str, *, ca_file: Path | None = None) -> None:
        """Prepare a pool of connections; nothing is sent yet.

        :raises TransportError: ``ca_file`` cannot be used.
        """
        self._url = f"{server_url}{API_PREFIX}{EXCHANGE_PATH}"
        try:
            tls = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
        except (OSError, ssl.SSLError) as error:
            raise TransportError(f"{ca_file}: cannot be used as ca_file: {error}") from None
        self._client = httpx.AsyncClient(
            verify=tls,
            headers={"authorization": f"Bearer {token}", "user-agent": f"airflow-edge-agent/{__version__}"},
            timeout=httpx.Timeout(_SLACK_SECONDS, connect=10.0),
            limits=httpx.Limits(max_connections=4, max_keepalive_connections=2, keepalive_expiry=60),
        )

    async def connect(self, hello: Hello, presence: Presence) -> HttpLink:
        """Send the hello.

        :raises TransportError: no server there, or it is not ours.
        """
        frames, session_id = await self.exchange([hello])
        link = HttpLink(self, frames, session_id)
        welcome = next((frame for frame in frames if isinstance(frame, Welcome)), None)
        if welcome is not None:
            link.start_polling(presence, welcome.intervals.heartbeat_seconds)
        return link

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def exchange(
        self, frames: list[AgentFrame], session_id: str | None = None, wait_seconds: float = 0
    ) -> tuple[list[ServerFrame], str | None]:
        """Make one request and return the answer's frames and session.

        :raises TransportError: as named by :func:`_translate`.
        """
        outgoing: list[AnyFrame] = list(frames)
        body = encode_batch(outgoing, session_id=session_id, wait_seconds=wait_seconds)
        timeout = httpx.Timeout(wait_seconds + _SLACK_SECONDS, connect=10.0)
        try:
            async with self._client.stream(
                "POST", self._url, content=body, headers={"content-type": "application/json"}, timeout=timeout
            ) as response:
                if response.status_code != httpx.codes.OK:
                    raise _refusal(response, self._url)
                data = await _read_bounded(response)
            batch = decode_batch(data)
            return [decode_server_frame(frame) for frame in batch.frames], batch.session_id
        except FrameError as error:
            raise TransportError(
                f"{self._url}: the answer is not the agent API's ({error}); is a proxy or login page in between?"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise _translate(error, self._url) from None


class HttpLink:
    """A session over the exchange carrier."""

    def __init__(self, transport: HttpTransport, frames: list[ServerFrame], session_id: str | None) -> None:
        self._transport = transport
        self._session_id = session_id
        self._arrived: asyncio.Queue[list[ServerFrame] | Exception] = asyncio.Queue()
        self._arrived.put_nowait(frames)
        self._poll: asyncio.Task[None] | None = None
        self._acted_upon = asyncio.Event()

    def start_polling(self, presence: Presence, wait_seconds: float) -> None:
        """Keep one request waiting at the server from now on."""
        self._poll = asyncio.create_task(self._poll_forever(presence, wait_seconds), name="http poll")

    async def _poll_forever(self, presence: Presence, wait_seconds: float) -> None:
        try:
            while True:
                asked_at = asyncio.get_running_loop().time()
                frames, _ = await self._transport.exchange(presence(), self._session_id, wait_seconds)
                if frames:
                    # Let the frames be acted upon first, so that the next poll tells of their effect.
                    self._acted_upon.clear()
                    self._arrived.put_nowait(frames)
                    await self._acted_upon.wait()
                else:
                    # A server that does not hold the answer back must not be asked without pause.
                    early = min(_LEAST_POLL_SECONDS, wait_seconds) - (asyncio.get_running_loop().time() - asked_at)
                    await asyncio.sleep(max(0.0, early))
        except Exception as error:  # noqa: BLE001 -- whoever waits in receive() must hear of it
            self._arrived.put_nowait(error)

    async def send(self, frames: list[AgentFrame]) -> None:
        """Send frames in as few requests as their size allows; the answers come through :meth:`receive`.

        :raises TransportError: the link is broken.
        """
        for group in _groups(frames):
            answers, _ = await self._transport.exchange(group, self._session_id)
            if answers:
                self._arrived.put_nowait(answers)

    async def receive(self) -> list[ServerFrame]:
        """Wait for frames.

        :raises TransportError: the link is broken.
        """
        # Whoever asks for more is done with what came before.
        self._acted_upon.set()
        arrived = await self._arrived.get()
        if isinstance(arrived, Exception):
            raise arrived
        return arrived

    async def close(self) -> None:
        """Stop polling."""
        if self._poll is not None:
            self._poll.cancel()
            # Not by suppressing CancelledError: that would swallow a cancellation of our own.
            await asyncio.gather(self._poll, return_exceptions=True)


def _groups(frames: list[AgentFrame]) -> list[list[AgentFrame]]:
    """Split frames so that no request grows beyond what the server takes."""
    groups: list[list[AgentFrame]] = []
    size = _MAX_SEND_BYTES
    for frame in frames:
        length = len(getattr(frame, "data", "")) + 1_000
        if size + length > _MAX_SEND_BYTES or len(groups[-1]) >= MAX_FRAMES:
            groups.append([])
            size = 0
        groups[-1].append(frame)
        size += length
    return groups


async def _read_bounded(response: httpx.Response) -> bytes:
    data = bytearray()
    async for piece in response.aiter_bytes():
        data += piece
        if len(data) > MAX_BATCH_BYTES:
            raise FrameError(f"longer than {MAX_BATCH_BYTES} bytes")
    return bytes(data)


def _refusal(response: httpx.Response, url: str) -> TransportError:
    """Say what a status other than 200 means to the operator."""
    code = response.status_code
    if code == httpx.codes.UNAUTHORIZED:
        return CredentialRefused(
            f"{url}: the server refuses this agent's token; make a new one on the server with "
            "'airflow edge-agents token create --name NAME' and put it into the token file"
        )
    if code in (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED):
        return TransportError(
            f"{url}: Airflow has no agent API there ({code}); check server_url, and that on the server "
            "airflow-edge-server is installed and [edge_agent] api_enabled is True"
        )
    if response.is_redirect:
        target = response.headers.get("location", "elsewhere")[:200]
        return TransportError(f"{url}: redirects to {target}; set server_url to where Airflow really is")
    words = f"{code} {response.reason_phrase}".strip()
    error = TransportError(f"{url}: the server answers {words}; see the log of the api-server, or of a proxy before it")
    with contextlib.suppress(ValueError):
        after = float(response.headers.get("retry-after", "0"))
        # In this order "nan" becomes 0.
        error.retry_after_seconds = min(max(0.0, after), _MAX_RETRY_AFTER_SECONDS)
    return error


def _translate(error: Exception, url: str) -> TransportError:
    """Turn the HTTP library's exception into one line for the operator."""
    text = str(error) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text:
        reason = text.split("CERTIFICATE_VERIFY_FAILED]", 1)[-1].split(" (_ssl", 1)[0].strip()
        return TransportError(
            f"{url}: the server's TLS certificate is not trusted ({reason}); check the clock, the name in server_url, "
            "or give the issuing authority as ca_file"
        )
    if "SSL" in text or "TLS" in text:
        return TransportError(f"{url}: no TLS connection ({text}); is server_url's https right for that port?")
    match error:
        case httpx.ProxyError():
            return TransportError(f"{url}: the proxy does not let us through ({text}); check HTTPS_PROXY and NO_PROXY")
        case httpx.ConnectTimeout():
            return TransportError(f"{url}: no answer to the connection attempt; check address, routing and firewall")
        case httpx.ConnectError() if _is_name_fault(error):
            return TransportError(f"{url}: the host name cannot be resolved; check server_url and DNS")
        case httpx.ConnectError():
            return TransportError(f"{url}: cannot connect ({text}); is the api-server running there?")
        case httpx.TimeoutException():
            return TransportError(
                f"{url}: the server stopped answering; is it overloaded, or does a proxy hold its answers back?"
            )
        case _:
            return TransportError(f"{url}: the connection broke ({text}); did the server or a proxy restart?")


def _is_name_fault(error: BaseException | None) -> bool:
    """Tell whether the host's name could not be resolved; the text of that differs from system to system."""
    while error is not None and not isinstance(error, socket.gaierror):
        error = error.__cause__ or error.__context__
    return error is not None
