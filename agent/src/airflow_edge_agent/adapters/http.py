"""The HTTP exchange carrier: frames in POST requests, answers held back until the server has something to say.

Two lanes share one pool of connections. The *poll* lane always has one request waiting at the server, so the server
can speak at any time. The *send* lane carries what happens here and is answered at once.
"""

from __future__ import annotations

import asyncio
import ssl

import httpx

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
from airflow_edge_agent.ports import Presence, Throttled, TransportError
from airflow_edge_agent.protocol import API_PREFIX, EXCHANGE_PATH
from airflow_edge_agent.protocol.codec import FrameError, decode_batch, decode_server_frame, encode_batch
from airflow_edge_agent.protocol.frames import (
    MAX_BATCH_BYTES,
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

_PATIENT_TRIES = 5
"""How often a request is made again that the server did not want to look at yet."""

_MAX_SEND_BYTES = MAX_BATCH_BYTES // 4


class HttpTransport:
    """Way to the server over HTTP/1.1."""

    def __init__(self, server_url: str, prover: Prover, network: Network) -> None:
        """Prepare a pool of connections; nothing is sent yet.

        :raises TransportError: something of ``network`` cannot be used.
        """
        self._url = f"{server_url}{API_PREFIX}{EXCHANGE_PATH}"
        self._prover = prover
        proxy = proxy_for(server_url)
        self._client = httpx.AsyncClient(
            # Reading the certificates costs memory that a server without TLS need not cost.
            verify=network.tls if self._url.startswith("https:") else False,
            # Not the library's own reading of the environment: another carrier's library reads it differently.
            trust_env=False,
            proxy=proxy,
            headers={"user-agent": f"airflow-edge-agent/{__version__}"},
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
        """Make one request and return the answer's frames and session. Within a session, wait if the server says so.

        :raises TransportError: as named by :func:`translate`.
        """
        for _ in range(_PATIENT_TRIES if session_id is not None else 0):
            try:
                return await self._exchange(frames, session_id, wait_seconds)
            except Throttled as error:
                await asyncio.sleep(max(error.retry_after_seconds, _LEAST_POLL_SECONDS))
        return await self._exchange(frames, session_id, wait_seconds)

    async def _exchange(
        self, frames: list[AgentFrame], session_id: str | None, wait_seconds: float
    ) -> tuple[list[ServerFrame], str | None]:
        outgoing: list[AnyFrame] = list(frames)
        body = encode_batch(outgoing, session_id=session_id, wait_seconds=wait_seconds)
        data = await self._post(body, wait_seconds)
        if data is None:
            data = await self._post(body, wait_seconds, again=True)
        try:
            batch = decode_batch(data or b"")
            return [decode_server_frame(frame) for frame in batch.frames], batch.session_id
        except FrameError as error:
            raise not_ours(self._url, str(error)) from None

    async def _post(self, body: bytes, wait_seconds: float, *, again: bool = False) -> bytes | None:
        """Make one request; ``None``: it was refused for the time in it, and another will have the right one."""
        timeout = httpx.Timeout(wait_seconds + _SLACK_SECONDS, connect=10.0)
        try:
            async with self._client.stream(
                "POST",
                self._url,
                content=body,
                headers={"content-type": "application/json", "authorization": self._prover.header()},
                timeout=timeout,
            ) as response:
                if response.status_code == httpx.codes.OK:
                    return await _read_bounded(response)
                if self._prover.was_late(response.headers.get("www-authenticate")) and not again:
                    return None
                raise _refusal(response, self._url)
        except FrameError as error:
            raise not_ours(self._url, str(error)) from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise translate(error, self._url) from None


class HttpLink:
    """A session over the exchange carrier."""

    carrier = "http"

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
        for group in groups(frames, _MAX_SEND_BYTES):
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


async def _read_bounded(response: httpx.Response) -> bytes:
    data = bytearray()
    async for piece in response.aiter_bytes():
        data += piece
        if len(data) > MAX_BATCH_BYTES:
            raise FrameError(f"longer than {MAX_BATCH_BYTES} bytes")
    return bytes(data)


def _refusal(response: httpx.Response, url: str) -> TransportError:
    """Say what a status other than 200 means to the operator."""
    return status_fault(
        url,
        response.status_code,
        response.reason_phrase,
        location=response.headers.get("location", "elsewhere") if response.is_redirect else None,
        retry_after=response.headers.get("retry-after"),
        challenge=response.headers.get("www-authenticate"),
    )


def translate(error: Exception, url: str) -> TransportError:
    """Turn the HTTP library's exception into one line for the operator."""
    text = str(error) or _of_tls(error) or type(error).__name__
    explained = tls_fault(url, text)
    if explained is not None:
        return explained
    match error:
        case httpx.ProxyError():
            return proxy_fault(url, text)
        case httpx.ConnectTimeout():
            return connect_timeout(url)
        case httpx.ConnectError():
            return connect_fault(url, error, text)
        case httpx.TimeoutException():
            return silent(url)
        case _:
            return broken(url, text)


def _of_tls(error: BaseException | None) -> str:
    """Return what the TLS layer said, where the library has lost it on the way."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return "" if error is None else str(error)
