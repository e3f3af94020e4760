"""What is too long, too many, negative or no number does not get in."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import pytest

from airflow_edge_agent.protocol.codec import (
    FrameError,
    decode_agent_frame,
    decode_batch,
    decode_server_frame,
    pack_log,
    unpack_log,
)
from airflow_edge_agent.protocol.frames import (
    MAX_BATCH_BYTES,
    MAX_FRAMES,
    MAX_JOBS,
    MAX_LOG_CHUNK_BYTES,
    Batch,
)
from fakes.golden import AGENT_TYPES, load

LONG = "x" * 2_001
NAN, INF = float("nan"), float("inf")
JOB = "5f0c2f0a-3a52-4d0c-9a57-1f6f3f1d8a01"

BAD: list[tuple[str, str, Any]] = [
    ("hello", "name", ""),
    ("hello", "name", "-edge"),
    ("hello", "name", "a/b"),
    ("hello", "name", "edge\n"),
    ("hello", "name", "n" * 64),
    ("hello", "agent_id", JOB.upper()),
    ("hello", "agent_id", JOB.replace("-", "")),
    ("hello", "instance_id", JOB + "\n"),
    ("hello", "instance_id", "../../etc/passwd"),
    ("hello", "boot_id", "b" * 201),
    ("hello", "hostname", "h" * 201),
    ("hello", "protocol_min", 0),
    ("hello", "protocol_max", 10_001),
    ("hello", "queues", ["a,b"]),
    ("hello", "queues", [" a"]),
    ("hello", "queues", [""]),
    ("hello", "queues", ["q" * 257]),
    ("hello", "queues", ["q\x00"]),
    ("hello", "queues", ["q"] * 101),
    ("hello", "concurrency", -1),
    ("hello", "concurrency", MAX_JOBS + 1),
    ("hello", "concurrency", 1.5),
    ("hello", "state", "asleep"),
    ("hello", "jobs", [{"job_id": JOB, "fence": 1, "phase": "running"}] * (MAX_JOBS + 1)),
    ("hello", "jobs", [{"job_id": JOB, "fence": 1, "phase": "accepting"}]),
    ("hello", "jobs", [{"job_id": JOB, "fence": 1, "phase": "running", "log_bytes": -1}]),
    ("hello", "versions", {"agent": "v" * 201, "python": "3"}),
    ("status", "slots_used", -1),
    ("status", "slots_total", MAX_JOBS + 1),
    ("status", "problem", LONG),
    ("heartbeat", "metrics", {"cpu_percent": NAN}),
    ("heartbeat", "metrics", {"cpu_percent": -0.1}),
    ("heartbeat", "metrics", {"load_1_per_core": NAN}),
    ("heartbeat", "metrics", {"load_5_per_core": INF}),
    ("heartbeat", "metrics", {"uptime_seconds": INF}),
    ("heartbeat", "metrics", {"memory_used_bytes": -1}),
    ("heartbeat", "metrics", {"memory_used_bytes": 2**63}),
    ("heartbeat", "metrics", {"cpu_count": 0}),
    ("heartbeat", "sent_at", "yesterday"),
    ("heartbeat", "sent_at", "2026-01-01T00:00:00"),
    ("welcome", "server_time", "2026-01-01T00:00:00"),
    ("accept", "job_id", "not-a-uuid"),
    ("accept", "fence", 0),
    ("accept", "fence", 2**31),
    ("accept", "fence", None),
    ("refuse", "reason", LONG),
    ("started", "pid", 0),
    ("started", "pid", 2**31),
    ("result", "outcome", "fine"),
    ("result", "exit_code", 2**31),
    ("result", "detail", LONG),
    ("result", "log_bytes", -1),
    ("result", "usage", {"cpu_seconds": NAN}),
    ("result", "usage", {"wall_seconds": -1}),
    ("result", "usage", {"peak_memory_bytes": 2**63}),
    ("log", "offset", -1),
    ("log", "offset", 2**63),
    ("log", "data", "A" * (MAX_LOG_CHUNK_BYTES * 3 // 2 + 1)),
    ("task_metrics", "metrics", [{"name": "a b", "kind": "counter", "values": [1]}]),
    ("task_metrics", "metrics", [{"name": "a\n", "kind": "counter", "values": [1]}]),
    ("task_metrics", "metrics", [{"name": "n" * 251, "kind": "counter", "values": [1]}]),
    ("task_metrics", "metrics", [{"name": "n", "kind": "set", "values": [1]}]),
    ("task_metrics", "metrics", [{"name": "n", "kind": "gauge", "values": []}]),
    ("task_metrics", "metrics", [{"name": "n", "kind": "gauge", "values": [NAN]}]),
    ("task_metrics", "metrics", [{"name": "n", "kind": "gauge", "values": [1e16]}]),
    ("task_metrics", "metrics", [{"name": "n", "kind": "timing", "values": [1] * 51}]),
    ("task_metrics", "metrics", [{"name": "n", "kind": "gauge", "values": [1], "tags": {"k,": "v"}}]),
    ("task_metrics", "metrics", [{"name": "n", "kind": "gauge", "values": [1], "tags": {"k": "v=w"}}]),
    (
        "task_metrics",
        "metrics",
        [{"name": "n", "kind": "gauge", "values": [1], "tags": dict.fromkeys("abcdefghijklmnopqrstu", "v")}],
    ),
    ("task_metrics", "metrics", [{"name": "n", "kind": "gauge", "values": [1]}] * 201),
    ("task_metrics", "metrics", [{"name": "n" * 250, "kind": "timing", "values": [1] * 50}] * 200),
    ("task_metrics", "dropped", -1),
    ("goodbye", "reason", LONG),
    ("welcome", "session_id", "1"),
    ("welcome", "intervals", {"heartbeat_seconds": 0}),
    ("welcome", "intervals", {"heartbeat_seconds": NAN}),
    ("welcome", "intervals", {"heartbeat_seconds": 3_601}),
    ("welcome", "intervals", {"log_seconds": 0.01}),
    ("welcome", "server_version", "v" * 201),
    ("welcome", "execution_api_url", "u" * 201),
    ("offer", "kind", "connection test"),
    ("offer", "slots", -1),
    ("offer", "slots", MAX_JOBS + 1),
    ("offer", "lease_seconds", NAN),
    ("offer", "lease_seconds", -1),
    ("offer", "label", "l" * 201),
    ("offer", "token", "t" * 8_193),
    ("offer", "workload", []),
    ("log_ack", "next_offset", -1),
    ("cancel", "reason", LONG),
    ("maintenance", "comment", LONG),
    ("close", "code", "because"),
    ("close", "message", LONG),
    ("unknown", "frame_type", "t" * 201),
]


@pytest.mark.parametrize(("kind", "field", "value"), BAD, ids=[f"{k}.{f}={str(v)[:20]!r}" for k, f, v in BAD])
def test_a_bad_value_is_refused_without_being_repeated(kind: str, field: str, value: Any) -> None:
    decode = decode_agent_frame if kind in AGENT_TYPES else decode_server_frame
    decode(load(kind))
    with pytest.raises(FrameError) as caught:
        decode(load(kind) | {field: value})
    message = str(caught.value)
    assert kind in message
    assert field in message
    assert len(message) < 400
    assert "\n" not in message


def test_the_token_of_an_offer_shows_neither_in_its_repr_nor_in_errors() -> None:
    offer = load("offer")
    assert offer["token"] not in repr(decode_server_frame(offer))
    with pytest.raises(FrameError) as caught:
        decode_server_frame(offer | {"token": "secret" * 2_000})
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("kind", [None, 5, "", ["offer"], {}])
def test_a_type_that_is_no_word(kind: Any) -> None:
    # Whatever it becomes, it must not be taken for a frame of the protocol nor break the decoder.
    try:
        frame = decode_server_frame({"type": kind})
    except FrameError:
        return
    assert frame.type == "unknown"


def test_a_frame_without_a_type() -> None:
    with pytest.raises(FrameError):
        decode_agent_frame({})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b'{"frames": {}}',
        b'{"frames": [1]}',
        b'{"session_id": "x"}',
        b'{"wait_seconds": -1}',
        b'{"wait_seconds": 121}',
        b'{"wait_seconds": NaN}',
        b"[" * 100_000,
        b"<html>login</html>",
    ],
)
def test_a_bad_batch(data: bytes) -> None:
    with pytest.raises(FrameError, match="no valid batch") as caught:
        decode_batch(data)
    assert "\n" not in str(caught.value)


def test_a_batch_with_too_many_frames() -> None:
    frames = [{"type": "unknown", "frame_type": "x"}] * MAX_FRAMES
    assert decode_batch(json.dumps({"frames": frames}).encode()).frames == frames
    with pytest.raises(FrameError, match="frames"):
        decode_batch(json.dumps({"frames": [*frames, frames[0]]}).encode())


def test_a_batch_that_is_too_large() -> None:
    with pytest.raises(FrameError, match="larger"):
        decode_batch(b" " * (MAX_BATCH_BYTES + 1))


def test_an_empty_batch_is_fine() -> None:
    assert decode_batch(b"{}") == Batch()


@pytest.mark.parametrize("data", [b"", b"x", b"\x00" * 1000, bytes(range(256)) * 1024])
def test_log_bytes_survive_the_way(data: bytes) -> None:
    assert unpack_log(pack_log(data)) == data


def test_the_largest_incompressible_chunk_fits_into_its_frame() -> None:
    data = b"".join(zlib.crc32(i.to_bytes(4, "big")).to_bytes(4, "big") for i in range(MAX_LOG_CHUNK_BYTES // 4))
    packed = pack_log(data)
    decode_agent_frame({"type": "log", "job_id": JOB, "offset": 0, "data": packed})
    assert unpack_log(packed) == data


def test_a_log_bomb_is_not_inflated() -> None:
    bomb = base64.b64encode(zlib.compress(b"\x00" * (64 * MAX_LOG_CHUNK_BYTES), 9)).decode()
    assert len(bomb) < MAX_LOG_CHUNK_BYTES
    with pytest.raises(FrameError, match="more than"):
        unpack_log(bomb)


def test_one_byte_too_many_is_too_many() -> None:
    with pytest.raises(FrameError):
        unpack_log(pack_log(b"x" * (MAX_LOG_CHUNK_BYTES + 1)))


@pytest.mark.parametrize(
    "data",
    [
        "",
        "not base64!",
        "AAAA",
        pack_log(b"hello")[:-4],
        "\N{LATIN SMALL LETTER E WITH ACUTE}" * 8,
        base64.b64encode(b"plain").decode(),
    ],
)
def test_damaged_log_data(data: str) -> None:
    with pytest.raises(FrameError):
        unpack_log(data)


def test_a_trailing_newline_does_not_get_past_the_patterns() -> None:
    for field, value in (("job_id", JOB + "\n"), ("job_id", "\n" + JOB)):
        with pytest.raises(FrameError):
            decode_agent_frame(load("accept") | {field: value})


@pytest.mark.parametrize("opened", ["[", '{"a":'])
def test_nesting_is_bounded(opened: str) -> None:
    closed = "]" if opened == "[" else "}"
    for depth in (300, 100_000):
        deep = opened * depth + "1" + closed * depth
        with pytest.raises(FrameError, match="recursion") as caught:
            decode_batch(b'{"frames": [{"type": "heartbeat", "custom": {"x": ' + deep.encode() + b"}}]}")
        assert len(str(caught.value)) < 300


def test_keys_that_the_other_side_made_up_are_not_repeated() -> None:
    for key in ("SECRET" * 1_000, "a\nb", "\x1b[2J"):
        with pytest.raises(FrameError) as caught:
            decode_agent_frame(load("heartbeat") | {"custom": {key: {"b": [float("nan")]}, "c" * 100: 1}})
        text = str(caught.value)
        assert len(text) < 400
        assert text.isprintable()
        assert "SECRET" not in text
