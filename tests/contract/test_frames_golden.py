"""Protocol revision 1, frozen: what older agents and servers in the field say and understand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_edge_agent.protocol.codec import (
    decode_agent_frame,
    decode_batch,
    decode_server_frame,
    encode_batch,
    unpack_log,
)
from airflow_edge_agent.protocol.frames import AnyFrame, Hello, Log, UnknownFrame
from fakes.golden import AGENT_TYPES, NAMES, SERVER_TYPES, load

DELIBERATE = (
    "Golden files are protocol revision 1 as it is spoken in the field. If this fails, agents and servers of different "
    "age may not understand each other any more. Change a golden file only on purpose: raise PROTOCOL_VERSION, keep "
    "the old files, add new ones."
)


def decode(data: dict[str, Any]) -> list[AnyFrame]:
    decoded: list[AnyFrame] = []
    if data["type"] in AGENT_TYPES:
        decoded.append(decode_agent_frame(data))
    if data["type"] in SERVER_TYPES:
        decoded.append(decode_server_frame(data))
    return decoded


def test_every_frame_type_has_a_golden_file() -> None:
    assert set(NAMES) == AGENT_TYPES.keys() | SERVER_TYPES.keys(), DELIBERATE


@pytest.mark.parametrize("name", NAMES)
def test_golden_frame_decodes_and_encodes_to_the_same(name: str) -> None:
    data = load(name)
    frames = decode(data)
    assert frames
    for frame in frames:
        assert type(frame) is (AGENT_TYPES | SERVER_TYPES)[name]
        assert frame.model_dump(mode="json") == data, DELIBERATE


@pytest.mark.parametrize("name", NAMES)
def test_golden_frame_sets_every_field(name: str) -> None:
    (first, *_) = decode(load(name))
    assert first.model_fields_set == set(type(first).model_fields), "a field without an example: " + DELIBERATE


@pytest.mark.parametrize("name", NAMES)
def test_fields_of_a_newer_peer_are_ignored(name: str) -> None:
    data = load(name)
    assert decode(data | {"invented_later": {"deep": [1, 2]}}) == decode(data)


def test_unknown_fields_inside_are_ignored_too() -> None:
    data = load("hello")
    more = data | {"jobs": [job | {"gpu": 1} for job in data["jobs"]], "versions": data["versions"] | {"libc": "2.36"}}
    assert decode(more) == decode(data)


def test_unknown_types_become_unknown_frames() -> None:
    for decode_one in (decode_agent_frame, decode_server_frame):
        assert decode_one({"type": "telemetry", "x": 1}) == UnknownFrame(frame_type="telemetry")
        assert decode_one({"type": "t" * 10_000}) == UnknownFrame(frame_type="t" * 200)


def test_each_side_takes_only_the_other_sides_frames() -> None:
    assert decode_agent_frame(load("offer")) == UnknownFrame(frame_type="offer")
    assert decode_server_frame(load("accept")) == UnknownFrame(frame_type="accept")


def test_optional_fields_may_be_left_out() -> None:
    # What the first release sent at the least; later releases must go on understanding it.
    required = {
        name: {key for key, field in model.model_fields.items() if field.is_required()}
        for name, model in (AGENT_TYPES | SERVER_TYPES).items()
    }
    for name, keys in required.items():
        data = load(name)
        assert decode({"type": name} | {key: data[key] for key in keys})
    assert required["hello"] == {
        "protocol_min", "protocol_max", "name", "agent_id", "boot_id", "instance_id", "hostname", "versions",
        "queues", "concurrency", "state", "jobs",
    }, DELIBERATE  # fmt: skip
    assert required["result"] == {"job_id", "fence", "outcome"}, DELIBERATE
    assert required["welcome"] == {
        "protocol", "session_id", "server_version", "airflow_version", "server_time", "intervals",
    }, DELIBERATE  # fmt: skip


def test_an_agent_that_knows_no_relay_gets_tokens() -> None:
    """The agents' own default is another one: what they leave out must not change its meaning."""
    data = load("hello")
    del data["execution_api"]
    (hello,) = decode(data)
    assert isinstance(hello, Hello)
    assert hello.execution_api == "direct", DELIBERATE


def test_a_batch_round_trip() -> None:
    frames = [frame for name in NAMES for frame in decode(load(name))]
    session = "c0ffee00-1234-4abc-8def-0123456789ab"
    batch = decode_batch(encode_batch(frames, session_id=session, wait_seconds=25))
    assert (batch.session_id, batch.wait_seconds) == (session, 25)
    assert batch.frames == [frame.model_dump(mode="json") for frame in frames]


def test_the_batch_format() -> None:
    batch = json.loads(encode_batch(decode(load("accept")), session_id=None, wait_seconds=0))
    assert batch == {"session_id": None, "wait_seconds": 0, "frames": [load("accept")]}, DELIBERATE


def test_the_golden_log_unpacks() -> None:
    (frame,) = decode(load("log"))
    assert isinstance(frame, Log)
    assert json.loads(unpack_log(frame.data))["event"] == "weighing part 17 \N{EN DASH} 42 g"
