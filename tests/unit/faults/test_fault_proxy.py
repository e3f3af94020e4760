"""The fault proxy itself, against a small server that says what it was told."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from faults.proxy import FaultProxy
from faults.wire import Cutter
from harness.waiting import wait_until


class _Handler(socketserver.StreamRequestHandler):
    """Answers each request with its own body, and remembers the bodies."""

    def handle(self) -> None:
        server = self.server
        assert isinstance(server, EchoServer)
        with contextlib.suppress(ConnectionError, ValueError):
            while line := self.rfile.readline():
                length = 0
                while (header := self.rfile.readline().strip()) != b"":
                    name, _, value = header.partition(b":")
                    if name.lower() == b"content-length":
                        length = int(value)
                assert line.startswith(b"POST")
                body = self.rfile.read(length)
                if len(body) < length:
                    return
                server.bodies.append(body)
                self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % length + body)


class EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[bytes] = []


class Client:
    def __init__(self, proxy: FaultProxy) -> None:
        self.socket = socket.create_connection(("127.0.0.1", proxy.port), timeout=10)

    def send(self, body: bytes) -> None:
        self.socket.sendall(request(body))

    def receive(self) -> bytes:
        """Return the next answer's body, nothing at the end of the connection."""
        data = b""
        with contextlib.suppress(ConnectionError):
            while piece := self.socket.recv(65536):
                data += piece
                head, found, body = data.partition(b"\r\n\r\n")
                if found and len(body) >= int(head.rpartition(b":")[2]):
                    return body
        return b""

    def ask(self, body: bytes) -> bytes:
        self.send(body)
        return self.receive()


Connect = Callable[[], Client]


def request(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body


@pytest.fixture
def server() -> Iterator[EchoServer]:
    with EchoServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(server: EchoServer) -> Iterator[FaultProxy]:
    with FaultProxy(server.server_address[1], seed=3) as proxy:
        yield proxy


@pytest.fixture
def connect(proxy: FaultProxy) -> Iterator[Connect]:
    clients: list[Client] = []

    def make() -> Client:
        clients.append(Client(proxy))
        return clients[-1]

    yield make
    for client in clients:
        client.socket.close()


def test_without_a_fault_everything_passes(proxy: FaultProxy, connect: Connect) -> None:
    client = connect()
    for size in (1, 70_000, 3):
        assert client.ask(b"x" * size) == b"x" * size


@pytest.mark.parametrize("reset", [True, False])
def test_cut_breaks_what_is_there_and_allows_new(proxy: FaultProxy, connect: Connect, *, reset: bool) -> None:
    client = connect()
    assert client.ask(b"one") == b"one"
    assert proxy.cut(reset=reset) == 1
    assert client.receive() == b""
    assert connect().ask(b"two") == b"two"


@pytest.mark.parametrize("direction", ["up", "down"])
def test_cut_after_bytes(proxy: FaultProxy, server: EchoServer, connect: Connect, direction: str) -> None:
    client = connect()
    proxy.cut_after("up" if direction == "up" else "down", 100)
    assert client.ask(b"x" * 200) == b""
    assert server.bodies == ([] if direction == "up" else [b"x" * 200])
    assert connect().ask(b"y" * 200) == b"y" * 200


def test_cut_at_a_frame_going_up(proxy: FaultProxy, server: EchoServer, connect: Connect) -> None:
    trap = proxy.cut_at("up", "accept", deliver=False)
    client = connect()
    assert client.ask(b'{"type":"accepted"}') != b""
    assert not trap.sprung.is_set()
    assert client.ask(b'{"type":"accept"}') == b""
    assert trap.sprung.is_set()
    assert server.bodies == [b'{"type":"accepted"}']
    proxy.cut_at("up", "accept", deliver=True)
    assert connect().ask(b'{"type":"accept"}') == b""
    wait_until(lambda: len(server.bodies) == 2, seconds=5, what="the delivered request")


def test_lose_answer(proxy: FaultProxy, server: EchoServer, connect: Connect) -> None:
    trap = proxy.lose_answer()
    assert connect().ask(b"one") == b""
    assert trap.sprung.is_set()
    assert server.bodies == [b"one"]
    assert connect().ask(b"two") == b"two"


@pytest.mark.parametrize("listening", [True, False])
def test_refuse_and_heal(proxy: FaultProxy, connect: Connect, *, listening: bool) -> None:
    client = connect()
    proxy.refuse(listening=listening)
    assert client.receive() == b""
    with contextlib.suppress(ConnectionError):
        assert connect().ask(b"one") == b""
    proxy.heal()
    assert connect().ask(b"two") == b"two"


def test_half_open_swallows_without_closing(proxy: FaultProxy, server: EchoServer, connect: Connect) -> None:
    client = connect()
    assert client.ask(b"one") == b"one"
    assert proxy.half_open() == 1
    client.send(b"two")
    client.socket.settimeout(0.3)
    with pytest.raises(TimeoutError):
        client.socket.recv(10)
    assert server.bodies == [b"one"]
    assert connect().ask(b"three") == b"three"


def test_a_black_hole_answers_nobody_until_it_is_healed(
    proxy: FaultProxy, server: EchoServer, connect: Connect
) -> None:
    client = connect()
    assert client.ask(b"one") == b"one"
    proxy.black_hole()
    client.send(b"two")
    client.socket.settimeout(0.3)
    with pytest.raises(TimeoutError):
        client.socket.recv(10)
    with pytest.raises(TimeoutError), socket.create_connection(("127.0.0.1", proxy.port), timeout=0.3):
        pass
    proxy.black_hole()
    proxy.heal()
    assert connect().ask(b"three") == b"three"
    assert server.bodies == [b"one", b"three"]


def test_slow_and_in_single_bytes(proxy: FaultProxy, connect: Connect) -> None:
    client = connect()
    for direction in ("up", "down"):
        proxy.single_bytes("up" if direction == "up" else "down")
    assert client.ask(b"x" * 5_000) == b"x" * 5_000
    proxy.heal()
    proxy.throttle("up", 10_000)
    began = time.monotonic()
    assert client.ask(b"x" * 3_000) == b"x" * 3_000
    assert time.monotonic() - began > 0.25
    proxy.heal()
    proxy.delay("down", 0.2, 0.3)
    began = time.monotonic()
    assert client.ask(b"x") == b"x"
    assert time.monotonic() - began >= 0.2


def test_repeat_delivers_twice_and_answers_once(proxy: FaultProxy, server: EchoServer, connect: Connect) -> None:
    proxy.repeat(1.0)
    client = connect()
    assert client.ask(b"one") == b"one"
    wait_until(lambda: server.bodies == [b"one", b"one"], seconds=5, what="the repetition")
    proxy.heal()
    assert client.ask(b"two") == b"two"
    assert proxy.repeated == 1


def test_reorder_delivers_the_old_after_the_new(proxy: FaultProxy, server: EchoServer, connect: Connect) -> None:
    old = connect()
    assert old.ask(b"first") == b"first"
    proxy.reorder()
    assert old.ask(b"old") == b""
    assert connect().ask(b"new") == b"new"
    wait_until(lambda: server.bodies == [b"first", b"new", b"old"], seconds=5, what="the held request")
    assert proxy.reordered == 1


def test_the_same_seed_gives_the_same_chances(server: EchoServer) -> None:
    def repeated(seed: int) -> list[int]:
        counts = []
        with FaultProxy(server.server_address[1], seed=seed) as proxy:
            proxy.repeat(0.5)
            client = Client(proxy)
            for _ in range(20):
                assert client.ask(b"x") == b"x"
                counts.append(proxy.repeated)
            client.socket.close()
        return counts

    assert repeated(1) == repeated(1) != repeated(2)


def frame(payload: bytes, *, mask: bytes = b"", opcode: int = 1) -> bytes:
    size = len(payload)
    length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2, "big") if size < 65536 else b""
    length = length or b"\x7f" + size.to_bytes(8, "big")
    head = bytes([0x80 | opcode, length[0] | (0x80 if mask else 0)]) + length[1:]
    return head + mask + bytes(byte ^ mask[at % 4] if mask else byte for at, byte in enumerate(payload))


@pytest.mark.parametrize("size", [0, 5, 300, 70_000])
def test_websocket_messages_are_read_unmasked(size: int) -> None:
    up, down = Cutter("up", plain=True), Cutter("down")
    ask = b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nSec-WebSocket-Extensions: permessage-deflate\r\nA: b\r\n\r\n"
    (asked,) = up.feed(ask)
    assert asked.raw == b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nA: b\r\n\r\n"
    assert not asked.data
    (agreed,) = down.feed(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n")
    assert not agreed.data
    up.become_websocket()
    stream = (
        frame(b"p" * size, mask=b"\x01\x02\x03\x04") + frame(b"", opcode=9, mask=b"aaaa") + frame(b"z", mask=b"1234")
    )
    found = [message for at in range(len(stream)) for message in up.feed(stream[at : at + 1])]
    assert [(message.text, message.data) for message in found] == [(b"p" * size, True), (b"", False), (b"z", True)]
    assert b"".join(message.raw for message in found) == stream
    (said,) = down.feed(frame(b"answer"))
    assert said.text == b"answer"


def test_what_is_not_understood_passes() -> None:
    cutter = Cutter("down")
    data = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"
    assert b"".join(message.raw for message in cutter.feed(data)) == data
    half = Cutter("up")
    assert half.feed(b"POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\nabc") == []
    assert half.rest().endswith(b"abc")


def test_what_is_barred_never_arrives_and_the_rest_does(
    proxy: FaultProxy, server: EchoServer, connect: Connect
) -> None:
    proxy.bar("secret")
    assert connect().ask(b"a secret") == b""
    assert connect().ask(b"news") == b"news"
    assert server.bodies == [b"news"]
    proxy.heal()
    assert connect().ask(b"a secret") == b"a secret"


def test_what_is_held_arrives_when_it_is_released(proxy: FaultProxy, server: EchoServer, connect: Connect) -> None:
    proxy.hold("later")
    late = connect()
    late.send(b"later")
    assert connect().ask(b"now") == b"now"
    assert server.bodies == [b"now"]
    proxy.release()
    assert late.receive() == b"later"
    assert connect().ask(b"later, too") == b"later, too"
