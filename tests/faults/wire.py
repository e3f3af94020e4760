"""Cuts a byte stream into a carrier's messages: HTTP messages, and WebSocket frames after an upgrade.

Only as much of both as a proxy needs that wants to lose, repeat or hold back whole messages. What it does not
understand passes as it comes.
"""

from __future__ import annotations

import gzip
import re
import zlib
from dataclasses import dataclass
from typing import Literal

Direction = Literal["up", "down"]
"""``up`` is from agent to server."""

_HEADERS_END = b"\r\n\r\n"
_MOST_HEADER_BYTES = 64 * 1024
_EXTENSIONS = re.compile(rb"(?im)^sec-websocket-extensions:.*\r\n")


@dataclass(frozen=True, slots=True)
class Message:
    """A piece of a stream that stands for itself."""

    raw: bytes
    text: bytes
    """What is in it, readable: headers and body, unpacked and unmasked."""
    whole: bool = True
    """Whether it is a message, and not just bytes."""
    websocket: bool = False
    data: bool = True
    """Whether it carries frames of ours: not a ping, pong or close of the WebSocket, nor its upgrade."""


class Cutter:
    """One direction of one connection.

    :param plain: remove the offer to compress WebSocket messages, so that their frames stay readable.
    """

    def __init__(self, direction: Direction, *, plain: bool = False) -> None:
        self._direction = direction
        self._plain = plain
        self._buffer = b""
        self._mode: Literal["http", "websocket", "bytes"] = "http"

    def become_websocket(self) -> None:
        """Read WebSocket frames from here on."""
        self._mode = "websocket"

    def feed(self, data: bytes) -> list[Message]:
        """Take in bytes; return what is complete."""
        self._buffer += data
        found = []
        while self._buffer and (message := self._next()) is not None:
            self._buffer = self._buffer[len(message.raw) :]
            found.append(self._prepare(message))
        return found

    def rest(self) -> bytes:
        """Return what is left of a stream that has ended within a message."""
        rest, self._buffer = self._buffer, b""
        return rest

    def _prepare(self, message: Message) -> Message:
        if not self._plain or self._direction != "up" or not _asks_upgrade(message.raw):
            return message
        raw = _EXTENSIONS.sub(b"", message.raw)
        return Message(raw, raw, data=False)

    def _next(self) -> Message | None:
        if self._mode == "bytes":
            return Message(self._buffer, self._buffer, whole=False)
        return self._http() if self._mode == "http" else self._websocket()

    def _http(self) -> Message | None:
        end = self._buffer.find(_HEADERS_END)
        if end < 0:
            if len(self._buffer) > _MOST_HEADER_BYTES:
                self._mode = "bytes"
                return self._next()
            return None
        head = self._buffer[: end + 4]
        status = head.split(b" ", 2)[1:2] if self._direction == "down" else []
        if status == [b"101"]:
            self._mode = "websocket"
            return Message(head, head, data=False)
        length = _header(head, b"content-length")
        bodiless = self._direction == "up" or bool(status and (status[0] in (b"204", b"304") or status[0][:1] == b"1"))
        if _header(head, b"transfer-encoding") or (length is None and not bodiless):
            self._mode = "bytes"
            return self._next()
        size = len(head) + (int(length) if length and length.isdigit() else 0)
        if len(self._buffer) < size:
            return None
        raw = self._buffer[:size]
        return Message(raw, head + _unpacked(head, raw[len(head) :]), data=not _asks_upgrade(head))

    def _websocket(self) -> Message | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        masked, length, at = buffer[1] & 0x80, buffer[1] & 0x7F, 2
        if length >= 126:
            width = 2 if length == 126 else 8
            if len(buffer) < at + width:
                return None
            length, at = int.from_bytes(buffer[at : at + width], "big"), at + width
        mask = buffer[at : at + 4] if masked else b""
        at += len(mask)
        if (masked and len(mask) < 4) or len(buffer) < at + length:
            return None
        payload = buffer[at : at + length]
        if masked:
            key = (mask * (length // 4 + 1))[:length]
            payload = (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(length, "big")
        control = bool(buffer[0] & 0x08)
        return Message(buffer[: at + length], payload, websocket=True, data=not control)


def _header(head: bytes, name: bytes) -> bytes | None:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip()
    return None


def _asks_upgrade(head: bytes) -> bool:
    return (_header(head.split(_HEADERS_END)[0], b"upgrade") or b"").lower() == b"websocket"


def _unpacked(head: bytes, body: bytes) -> bytes:
    try:
        match _header(head, b"content-encoding"):
            case b"gzip":
                return gzip.decompress(body)
            case b"deflate":
                return zlib.decompress(body)
    except (OSError, zlib.error, EOFError):
        pass
    return body
