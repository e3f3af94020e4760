"""A TCP proxy that breaks connections on command. It knows just enough of HTTP and WebSocket to lose whole messages.

It runs in a thread of its own. Every command may be given from any thread and has taken effect when it returns. Chance
comes from a seed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import random
import re
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypeVar

from faults.deaf import DeafPort
from faults.wire import Cutter, Direction, Message

if TYPE_CHECKING:
    from types import TracebackType

_T = TypeVar("_T")

DIRECTIONS: tuple[Direction, Direction] = ("up", "down")
HOLD_SECONDS = 0.3
"""How long a held connection collects what its client says before the client loses it."""
HELD_AT_MOST_SECONDS = 10.0
"""How long held data waits for a newer connection."""
_TRICKLE_REST = 256
"""One byte at a time, and after this many the other connections get their turn."""


@dataclass(slots=True)
class Pace:
    """What happens to the bytes of one direction."""

    delay_seconds: tuple[float, float] = (0.0, 0.0)
    single_bytes: bool = False
    bytes_per_second: float | None = None
    cut_after_bytes: int | None = None


@dataclass(slots=True)
class Trap:
    """Cuts all connections at a message."""

    direction: Direction
    pattern: re.Pattern[bytes]
    deliver: bool
    """Whether the message still arrives."""
    skip: int = 0
    bar: re.Pattern[bytes] | None = None
    """What must not be delivered afterwards."""
    hold: re.Pattern[bytes] | None = None
    """What must be kept afterwards."""
    sprung: threading.Event = field(default_factory=threading.Event)


@dataclass(slots=True, eq=False)
class _Connection:
    number: int
    client: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    server: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    mute: bool = False
    """Half-open: both ends believe in it, nothing passes."""
    held: list[bytes] | None = None
    """What the client has said since its connection is held back."""
    released: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once what was held has been delivered."""
    cutters: dict[Direction, Cutter] = field(default_factory=dict)
    websocket: bool = False
    messages: int = 0
    """Whole messages that went up."""
    closed: bool = False

    def reader(self, direction: Direction) -> asyncio.StreamReader:
        return (self.client if direction == "up" else self.server)[0]

    def writer(self, direction: Direction) -> asyncio.StreamWriter:
        return (self.server if direction == "up" else self.client)[1]

    def close(self, *, reset_client: bool = False) -> None:
        self.closed = True
        # The server's side is closed softly: a reset would take back what has been delivered.
        self.server[1].close()
        if reset_client:
            sock = self.client[1].get_extra_info("socket")
            with contextlib.suppress(OSError, AttributeError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.client[1].transport.abort()
        else:
            self.client[1].close()


class FaultProxy:
    """Listens on the loopback interface and forwards to one server.

    :param port: of the server.
    :param plain: keep WebSocket messages uncompressed, so that traps can read them.
    """

    def __init__(self, port: int, *, seed: int = 0, plain: bool = False) -> None:
        self.port = 0
        self.connections_made = 0
        self.cuts = 0
        self.repeated = 0
        self.reordered = 0
        self._server_port = port
        self._plain = plain
        self._random = random.Random(seed)
        self._pace: dict[Direction, Pace] = {"up": Pace(), "down": Pace()}
        self._traps: list[Trap] = []
        self._repeat = 0.0
        self._mute_new = False
        self._refusing = False
        self._deaf: DeafPort | None = None
        self._barred: re.Pattern[bytes] | None = None
        self._held: re.Pattern[bytes] | None = None
        self._let_go = asyncio.Event()
        self._connections: set[_Connection] = set()
        self._answered = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._listener: asyncio.Server | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._stop)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        """Base URL of the server, through this proxy."""
        return f"http://127.0.0.1:{self.port}"

    # Commands

    def cut(self, *, reset: bool = True) -> int:
        """Break every connection now, with a reset or softly; return how many there were."""
        return self._run(lambda: self._cut(reset=reset))

    def cut_after(self, direction: Direction, count: int) -> None:
        """Break every connection once that many more bytes went in a direction."""
        self._run(lambda: setattr(self._pace[direction], "cut_after_bytes", count))

    def cut_at(
        self,
        direction: Direction,
        frame: str,
        *,
        deliver: bool,
        skip: int = 0,
        bar: str | None = None,
        hold: str | None = None,
    ) -> Trap:
        """Break every connection at the next message with a frame of that type; return what tells when it happened.

        :param deliver: whether the message still arrives, and only what follows is lost.
        :param skip: let so many of them pass first.
        :param bar: from that moment on, do as :meth:`bar` with this pattern.
        :param hold: likewise as :meth:`hold`.
        """
        pattern = re.compile(rb'"type"\s*:\s*"' + re.escape(frame.encode()) + rb'"')
        barred, held = (None if text is None else re.compile(text.encode()) for text in (bar, hold))
        trap = Trap(direction, pattern, deliver, skip, barred, held)
        self._run(lambda: self._traps.append(trap))
        return trap

    def lose_answer(self) -> Trap:
        """Deliver what goes up, and break every connection instead of passing the next message down."""
        trap = Trap("down", re.compile(rb""), deliver=False)
        self._run(lambda: self._traps.append(trap))
        return trap

    def refuse(self, *, listening: bool = False) -> None:
        """Break every connection and allow no new one: refused, or taken and broken at once if ``listening``."""

        async def work() -> None:
            self._refusing = True
            if not listening:
                await self._close_listener()
            self._cut(reset=True)

        self._call(work)

    def black_hole(self) -> None:
        """Lose everything without a word, until :meth:`heal`: on the present connections, which stay half-open, and
        whoever wants a new one gets no answer.
        """

        async def work() -> None:
            for connection in self._connections:
                connection.mute = True
            if self._deaf is None:
                await self._close_listener()
                self._deaf = DeafPort(self.port).__enter__()

        self._call(work)

    def bar(self, pattern: str) -> None:
        """Deliver no request of the agent's side that matches: its connection is broken instead."""
        self._run(lambda: setattr(self, "_barred", re.compile(pattern.encode())))

    def hold(self, pattern: str) -> None:
        """Keep requests that match until :meth:`release`."""

        def work() -> None:
            self._let_go.clear()
            self._held = re.compile(pattern.encode())

        self._run(work)

    def release(self) -> None:
        """Deliver what was held, and hold nothing more."""

        def work() -> None:
            self._held = None
            self._let_go.set()

        self._run(work)

    def delay(self, direction: Direction, low_seconds: float, high_seconds: float) -> None:
        """Let every message of a direction take that much longer, at random."""
        self._run(lambda: setattr(self._pace[direction], "delay_seconds", (low_seconds, high_seconds)))

    def single_bytes(self, direction: Direction) -> None:
        """Send one byte at a time."""
        self._run(lambda: setattr(self._pace[direction], "single_bytes", True))

    def throttle(self, direction: Direction, bytes_per_second: float) -> None:
        """Read no faster than that from the sender of a direction."""
        self._run(lambda: setattr(self._pace[direction], "bytes_per_second", bytes_per_second))

    def half_open(self, *, new_too: bool = False) -> int:
        """Let nothing pass on the present connections any more, without closing them; return how many there are.

        :param new_too: nor on those to come, until :meth:`heal`.
        """

        def work() -> int:
            self._mute_new = new_too
            for connection in self._connections:
                connection.mute = True
            return len(self._connections)

        return self._run(work)

    def repeat(self, probability: float) -> None:
        """Deliver messages from the agent twice: a request on a connection of its own, whose answer nobody sees."""
        self._run(lambda: setattr(self, "_repeat", probability))

    def reorder(self) -> None:
        """Hold back what the agent says, break its connections, and deliver it after a new one has been answered."""

        def work() -> None:
            self._answered.clear()
            for connection in list(self._connections):
                if not connection.mute and connection.held is None:
                    connection.held = []
                    self._spawn(self._deliver_late(connection))

        self._run(work)

    def heal(self) -> None:
        """End every fault. Connections that are half-open stay so."""

        async def work() -> None:
            self._pace = {"up": Pace(), "down": Pace()}
            self._traps.clear()
            self._repeat = 0.0
            self._mute_new = False
            self._refusing = False
            self._barred = self._held = None
            self._let_go.set()
            self._stop_being_deaf()
            if self._listener is None:
                await self._listen()

        self._call(work)

    # Inside of the thread

    def _run(self, work: Callable[[], _T]) -> _T:
        done: concurrent.futures.Future[_T] = concurrent.futures.Future()

        def step() -> None:
            try:
                done.set_result(work())
            except BaseException as error:  # noqa: BLE001 -- whoever gave the command must hear of it
                done.set_exception(error)

        self._loop.call_soon_threadsafe(step)
        return done.result(30)

    def _call(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        asyncio.run_coroutine_threadsafe(work(), self._loop).result(30)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port, limit=1 << 16)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _close_listener(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            # A connection that is just being taken would fail in asyncio, and stay open for ever.
            await asyncio.sleep(0.02)
            listener.close()

    def _stop_being_deaf(self) -> None:
        deaf, self._deaf = self._deaf, None
        if deaf is not None:
            deaf.__exit__(None, None, None)

    async def _stop(self) -> None:
        self._stop_being_deaf()
        await self._close_listener()
        self._cut(reset=False)
        own = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not own]
        if tasks:
            # One that is cancelled while it connects leaves its socket open.
            await asyncio.wait(tasks, timeout=0.3)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(3):
            # Transports close in later rounds of the loop, and there will be none.
            await asyncio.sleep(0)

    def _cut(self, *, reset: bool) -> int:
        connections = [connection for connection in self._connections if connection.held is None]
        for connection in connections:
            connection.close(reset_client=reset)
        self._connections.difference_update(connections)
        self.cuts += 1
        return len(connections)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._spawn(self._serve(reader, writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        cuts = self.cuts
        try:
            server = await asyncio.open_connection("127.0.0.1", self._server_port, limit=1 << 16)
        except OSError:
            writer.close()
            return
        if self.cuts != cuts:
            # It was there already, but not yet among those that were broken.
            server[1].close()
            writer.transport.abort()
            return
        self.connections_made += 1
        connection = _Connection(self.connections_made, (reader, writer), server, mute=self._mute_new)
        connection.cutters = {direction: Cutter(direction, plain=self._plain) for direction in DIRECTIONS}
        self._connections.add(connection)
        pumps = [asyncio.create_task(self._pump(connection, direction)) for direction in DIRECTIONS]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        if connection.mute and not connection.closed:
            # The end that is still there must not learn that the other one has gone.
            await asyncio.wait(pumps)
        elif connection.held is not None:
            await connection.released.wait()
        connection.close()
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        self._connections.discard(connection)

    async def _pump(self, connection: _Connection, direction: Direction) -> None:
        reader, cutter = connection.reader(direction), connection.cutters[direction]
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                for message in cutter.feed(data):
                    if connection.mute or connection.closed:
                        continue
                    if direction == "up" and connection.held is not None:
                        connection.held.append(message.raw)
                        continue
                    await self._pass(connection, direction, message)
            if not connection.mute and not connection.closed:
                await self._write(connection, direction, cutter.rest())

    async def _pass(self, connection: _Connection, direction: Direction, message: Message) -> None:
        if direction == "down":
            if message.raw.startswith(b"HTTP/1.1 101"):
                connection.websocket = True
                connection.cutters["up"].become_websocket()
            if message.data and connection.held is None:
                # Only an answer on a connection that is not held shows that there is a newer one.
                self._answered.set()
        if direction == "up" and message.whole and not message.websocket:
            if self._barred is not None and self._barred.search(message.text):
                connection.close(reset_client=True)
                return
            if self._held is not None and self._held.search(message.text):
                await self._let_go.wait()
        trap = self._sprung(direction, message)
        if trap is not None:
            self._barred = trap.bar or self._barred
            if trap.hold is not None:
                self._let_go.clear()
                self._held = trap.hold
            if trap.deliver:
                await self._write(connection, direction, message.raw)
            self._cut(reset=self._random.random() < 0.5)
            trap.sprung.set()
            return
        again = direction == "up" and message.whole and message.data and self._random.random() < self._repeat
        if again and not connection.websocket:
            self.repeated += 1
            first = self._random.random() < 0.5
            self._spawn(self._repeat_request(message.raw))
            if first:
                await asyncio.sleep(self._random.random() * 0.05)
        await self._write(connection, direction, message.raw)
        # The first message of a WebSocket session is its hello, and a stream cannot begin twice.
        if again and connection.websocket and connection.messages > 0:
            self.repeated += 1
            await self._write(connection, direction, message.raw)
        if direction == "up" and message.websocket:
            connection.messages += 1

    def _sprung(self, direction: Direction, message: Message) -> Trap | None:
        if not message.data:
            return None
        for trap in self._traps:
            if trap.direction == direction and trap.pattern.search(message.text):
                if trap.skip:
                    trap.skip -= 1
                    continue
                self._traps.remove(trap)
                return trap
        return None

    async def _repeat_request(self, raw: bytes) -> None:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", self._server_port)
            try:
                writer.write(raw)
                await reader.read(1)
            finally:
                writer.close()

    async def _deliver_late(self, connection: _Connection) -> None:
        await asyncio.sleep(HOLD_SECONDS)
        # Answers of before the break must not count.
        self._answered.clear()
        connection.client[1].transport.abort()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._answered.wait(), HELD_AT_MOST_SECONDS)
        with contextlib.suppress(OSError):
            for raw in connection.held or []:
                self.reordered += 1
                connection.server[1].write(raw)
            await connection.server[1].drain()
        # It has to be read before the end of the connection is noticed.
        await asyncio.sleep(HOLD_SECONDS)
        connection.released.set()

    async def _write(self, connection: _Connection, direction: Direction, data: bytes) -> None:
        pace = self._pace[direction]
        if pace.delay_seconds[1]:
            await asyncio.sleep(self._random.uniform(*pace.delay_seconds))
        while data and not connection.closed and not connection.mute:
            pace = self._pace[direction]
            size = len(data)
            if pace.single_bytes:
                size = 1
            elif pace.bytes_per_second:
                size = max(1, int(pace.bytes_per_second / 20))
            last = pace.cut_after_bytes is not None and min(size, len(data)) >= pace.cut_after_bytes
            if last:
                assert pace.cut_after_bytes is not None
                size = pace.cut_after_bytes
            elif pace.cut_after_bytes is not None:
                pace.cut_after_bytes -= min(size, len(data))
            piece, data = data[:size], data[size:]
            writer = connection.writer(direction)
            writer.write(piece)
            await writer.drain()
            if last:
                pace.cut_after_bytes = None
                self._cut(reset=self._random.random() < 0.5)
            elif pace.single_bytes:
                await asyncio.sleep(0.001 if len(data) % _TRICKLE_REST == 0 else 0)
            elif pace.bytes_per_second:
                await asyncio.sleep(len(piece) / pace.bytes_per_second)
