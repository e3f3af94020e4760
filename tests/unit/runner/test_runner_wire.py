from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import uuid
from typing import get_args

import pytest

from airflow_edge_agent.protocol import jobs as protocol
from airflow_edge_agent.protocol.frames import Offer
from airflow_edge_agent.runner import wire
from airflow_edge_agent.runner.limits import Limits

JOB = str(uuid.uuid4())
RESULT = wire.JobResult(
    job_id=JOB,
    outcome=wire.Outcome.FAILED,
    exit_code=-9,
    detail="gone",
    cpu_seconds=0.25,
    peak_memory_bytes=1024,
    wall_seconds=1.5,
    finished_at="2026-01-01T00:00:00+00:00",
)
VERSIONS = wire.Versions(python="3.11.7", task_sdk="1.3.2", airflow=None)

ISOLATION = wire.Isolation(cgroups=False, missing=("no cgroups",), own_supervisor="an old SDK")

COMMANDS: list[wire.Command] = [
    wire.Run(job_id=JOB, kind="task", workload={"a": [1]}, token="t", server="http://x/"),
    wire.Run(job_id=JOB, kind="connection_test", workload={"a": [1]}, token="t", server="http://x/"),
    wire.Signal(job_id=JOB, signal=9),
    wire.Run(
        job_id=JOB,
        kind="task",
        workload={},
        token="t",
        server="http://x/",
        limits=Limits(memory_max_bytes=1, pids_max=2),
        statsd_port=8_125,
    ),
    wire.Stop(),
    wire.Renew(),
]
EVENTS: list[wire.Event] = [
    wire.Hello(pid=1, ready=False, versions=None, jobs=(wire.RunningJob(job_id=JOB, pid=2, start_time=3),)),
    wire.Hello(pid=1, ready=True, versions=VERSIONS, jobs=()),
    wire.Hello(pid=1, ready=True, versions=VERSIONS, jobs=(), isolation=ISOLATION, leaving=True, files={"/a": "1 2 3"}),
    wire.Ready(versions=VERSIONS, warmup_seconds=1.5, isolation=ISOLATION),
    wire.Leaving(),
    wire.Problem(detail="no"),
    wire.Started(job_id=JOB, pid=2, start_time=3),
    wire.Finished(job_id=JOB, result=RESULT),
    wire.Refused(job_id=None, detail="no"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.op)
def test_a_command_survives_the_way(command: wire.Command) -> None:
    line = wire.encode(command)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert wire.decode_command(line) == command


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: e.ev)
def test_an_event_survives_the_way(event: wire.Event) -> None:
    assert wire.decode_event(wire.encode(event)) == event


def test_unknown_fields_are_ignored() -> None:
    data = json.loads(wire.encode(COMMANDS[0])) | {"later": True}
    assert wire.decode_command(json.dumps(data).encode()) == COMMANDS[0]


def test_an_unknown_type_is_told_apart_from_nonsense() -> None:
    with pytest.raises(wire.UnknownMessage):
        wire.decode_command(b'{"op": "dance"}')
    with pytest.raises(wire.UnknownMessage):
        wire.decode_event(b'{"ev": "dance"}')


def _run(**changes: object) -> bytes:
    return json.dumps(json.loads(wire.encode(COMMANDS[0])) | changes).encode()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"nonsense",
        b"[" * 100_000,
        b"{}",
        b'{"op": 1}',
        _run(job_id="../../etc"),
        _run(job_id=JOB.upper()),
        _run(job_id=JOB + "\n"),
        _run(kind="other"),
        _run(workload=[]),
        _run(token=None),
        _run(server=1),
        json.dumps({"op": "signal", "job_id": JOB, "signal": 2}).encode(),
        json.dumps({"op": "signal", "job_id": JOB, "signal": True}).encode(),
        json.dumps({"op": "signal", "job_id": JOB, "signal": 9.0}).encode(),
    ],
)
def test_nonsense_is_an_error_that_repeats_nothing_of_it(line: bytes) -> None:
    with pytest.raises(wire.WireError) as caught:
        wire.decode_command(line)
    assert "etc" not in str(caught.value)


def test_a_result_with_a_wrong_type_is_refused() -> None:
    for name, value in [("outcome", "great"), ("cpu_seconds", True), ("peak_memory_bytes", "1"), ("exit_code", "0")]:
        with pytest.raises(wire.WireError, match=name):
            wire.JobResult.from_dict(RESULT.as_dict() | {name: value})


def test_secrets_do_not_show_in_a_repr() -> None:
    run = wire.Run(job_id=JOB, kind="task", workload={"p": "hidden"}, token="hidden", server="http://x/")
    assert "hidden" not in repr(run)


def test_the_outcomes_are_those_of_the_protocol() -> None:
    known = {outcome.name: outcome.value for outcome in protocol.Outcome}
    assert {outcome.name: outcome.value for outcome in wire.Outcome}.items() <= known.items()


def test_result_fields_are_the_agreed_ones() -> None:
    assert [field.name for field in dataclasses.fields(wire.JobResult)] == [
        "job_id",
        "outcome",
        "exit_code",
        "detail",
        "cpu_seconds",
        "peak_memory_bytes",
        "wall_seconds",
        "finished_at",
        "io_read_bytes",
        "io_write_bytes",
    ]


def test_lines_come_out_however_they_are_cut() -> None:
    stream = b"one\ntwo\n\nthree"
    for size in range(1, len(stream) + 1):
        buffer = wire.LineBuffer()
        lines = [line for i in range(0, len(stream), size) for line in buffer.feed(stream[i : i + size])]
        assert lines == [b"one", b"two", b""]
        assert buffer.feed(b"\n") == [b"three"]


def test_a_line_without_end_is_bounded() -> None:
    buffer = wire.LineBuffer(limit=10)
    assert buffer.feed(b"123456789\n") == [b"123456789"]
    with pytest.raises(wire.WireError, match="longer than 10"):
        buffer.feed(b"1234567890")
    with pytest.raises(wire.WireError, match="longer than 10"):
        wire.LineBuffer(limit=10).feed(b"1234567890123\n")


def test_the_wire_needs_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; import airflow_edge_agent.runner.wire; "
        "print([m for m in ('airflow', 'pydantic', 'httpx', 'psutil') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_runner_knows_every_kind_of_job_that_a_server_may_offer() -> None:
    assert set(wire.KINDS) == set(get_args(Offer.model_fields["kind"].annotation))


@pytest.mark.parametrize("port", [0, -1, 65_536, "8125", True, 1.5])
def test_a_port_that_is_none(port: object) -> None:
    run = json.loads(wire.encode(COMMANDS[0]))
    with pytest.raises(wire.WireError, match="statsd_port"):
        wire.decode_command(json.dumps(run | {"statsd_port": port}).encode())
