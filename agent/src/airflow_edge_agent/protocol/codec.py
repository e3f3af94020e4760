"""Frames to JSON and back, log bytes to frame data and back."""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from airflow_edge_agent.protocol.frames import (
    MAX_BATCH_BYTES,
    MAX_LOG_CHUNK_BYTES,
    AgentFrame,
    AnyFrame,
    Batch,
    ServerFrame,
    UnknownFrame,
)


class FrameError(ValueError):
    """What came is no valid batch or frame. The message says where, and holds nothing of the content."""


_F = TypeVar("_F")

_NAME = re.compile(r"[a-z][a-z_0-9]{0,40}")
_DEPTH = 6
_LONGEST = 300
_NONE = "[]}"
"""How a batch without frames ends."""


# Built when the first frame comes: each end decodes only what the other one says.
@cache
def _agent_frames() -> TypeAdapter[AgentFrame]:
    return TypeAdapter(Annotated[AgentFrame, Field(discriminator="type")])


@cache
def _server_frames() -> TypeAdapter[ServerFrame]:
    return TypeAdapter(Annotated[ServerFrame, Field(discriminator="type")])


def encode_batch(frames: list[AnyFrame], *, session_id: str | None = None, wait_seconds: float = 0) -> bytes:
    """Encode a batch as UTF-8 JSON."""
    around = Batch(session_id=session_id, wait_seconds=wait_seconds).model_dump_json()
    # Each frame is walked through once: what it becomes in a batch is what it is by itself.
    return f"{around.removesuffix(_NONE)}[{','.join(frame.model_dump_json() for frame in frames)}]}}".encode()


def decode_batch(data: bytes) -> Batch:
    """Decode a batch; its frames stay plain objects.

    :raises FrameError: when it is too large, no JSON or no batch.
    """
    if len(data) > MAX_BATCH_BYTES:
        raise FrameError(f"batch of {len(data)} bytes is larger than {MAX_BATCH_BYTES}")
    try:
        return Batch.model_validate_json(data)
    except ValidationError as error:
        raise FrameError(f"no valid batch: {_where(error)}") from None


def decode_agent_frame(data: dict[str, Any]) -> AgentFrame:
    """Decode one frame that an agent sent.

    :raises FrameError: when a known type has invalid content.
    """
    return _decode(_agent_frames(), data)


def decode_server_frame(data: dict[str, Any]) -> ServerFrame:
    """Decode one frame that the server sent.

    :raises FrameError: when a known type has invalid content.
    """
    return _decode(_server_frames(), data)


def _decode(adapter: TypeAdapter[_F], data: dict[str, Any]) -> _F | UnknownFrame:
    try:
        return adapter.validate_python(data)
    except ValidationError as error:
        kind = data.get("type")
        if any(e["type"] == "union_tag_invalid" for e in error.errors(include_url=False, include_input=False)):
            return UnknownFrame(frame_type=str(kind)[:200])
        raise FrameError(f"frame {str(kind)[:60]!r}: {_where(error)}") from None


def _where(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    # What is no name of ours was made up by the other side: it may be long, and is content.
    parts = [str(part) if isinstance(part, int) or _NAME.fullmatch(part) else "?" for part in first["loc"][:_DEPTH]]
    return f"{'.'.join(parts) or 'document'}: {first['msg'][:_LONGEST]}"


def pack_log(data: bytes) -> str:
    """Compress and encode log bytes for a :class:`~airflow_edge_agent.protocol.frames.Log` frame."""
    return base64.b64encode(zlib.compress(data, 1)).decode("ascii")


def unpack_log(data: str) -> bytes:
    """Decode the data of a log frame.

    :raises FrameError: when it is damaged, or inflates to more than ``MAX_LOG_CHUNK_BYTES``.
    """
    try:
        inflater = zlib.decompressobj()
        content = inflater.decompress(base64.b64decode(data, validate=True), MAX_LOG_CHUNK_BYTES)
    except (binascii.Error, zlib.error, ValueError):
        raise FrameError("log data is not base64 of zlib") from None
    if inflater.unconsumed_tail:
        raise FrameError(f"log data inflates to more than {MAX_LOG_CHUNK_BYTES} bytes")
    if not inflater.eof:
        raise FrameError("log data is cut short")
    return content
