"""What others write can neither forge a line of ours nor drive a terminal: log, journal, edgectl."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import pytest
import structlog

from airflow_edge_agent.core.jobs import AgentJob, Phase
from airflow_edge_agent.ctl import show
from airflow_edge_agent.ctl.client import _checked
from airflow_edge_agent.ctl.commands import _readable
from airflow_edge_agent.ctl.terminal import complain
from airflow_edge_agent.protocol.text import visible
from airflow_edge_agent.runtime.logging import configure_logging
from airflow_edge_agent.runtime.tasklog import TaskLogs

CANARIES = {
    "newline": "a\n2026-01-01 [error    ] forged",
    "return": "a\rforged",
    "clear the screen": "a\x1b[2Jforged",
    "title": "a\x1b]0;forged\x07",
    "eight bit control": "a\x9b31mforged",
    "direction": "a\u202egnp.exe",
    "isolate": "a\u2066forged\u2069",
    "line separator": "a\u2028forged",
    "nul": "a\x00forged",
    "half a character": "a\ud800forged",
}
canaries = pytest.mark.parametrize("canary", CANARIES.values(), ids=list(CANARIES))


def harmless(text: str, *, lines: int) -> bool:
    """Tell whether nothing in it does more than to be shown."""
    return text.count("\n") == lines and text == visible(text, keep="\n")


@canaries
def test_texts_are_spelled_out(canary: str) -> None:
    assert visible(canary).isprintable()
    assert "\\" in visible(canary)
    assert visible(visible(canary)) == visible(canary)
    assert visible("grün, 漢字, 🙂, a\\b") == "grün, 漢字, 🙂, a\\b"


@canaries
@pytest.mark.parametrize("style", ["console", "json"])
def test_the_agents_own_log(canary: str, style: Any) -> None:
    stream = io.StringIO()
    configure_logging("info", style, stream)
    structlog.get_logger().warning(canary, comment=canary, many=[canary], deep={canary: {canary: 1}})
    assert harmless(stream.getvalue(), lines=1), stream.getvalue()


@canaries
def test_the_journal(canary: str) -> None:
    sent: list[Mapping[str, str]] = []
    taken = True

    def send(fields: Mapping[str, str]) -> bool:
        sent.append(fields)
        return taken

    stream = io.StringIO()
    configure_logging("info", "auto", stream, send)
    structlog.get_logger().warning(canary, task=canary)
    assert all(harmless(value, lines=0) for value in sent[0].values())
    # When journald is away, a line of the stream must stay one: it carries its priority in front.
    taken = False
    structlog.get_logger().error("failed", exc_info=ValueError(canary))
    first, *others = stream.getvalue().splitlines()
    assert first.startswith("<3>failed")
    assert all(line.startswith("  ") and line.isprintable() for line in others)


@canaries
def test_lines_of_tasks_in_the_journal(canary: str) -> None:
    sent: list[Mapping[str, str]] = []

    def send(fields: Mapping[str, str]) -> bool:
        sent.append(fields)
        return True

    job = AgentJob(job_id="1", fence=1, slots=1, label=canary, phase=Phase.RUNNING)
    nothing: Any = None
    TaskLogs(nothing, nothing, send)._say(job, json.dumps({"event": canary}).encode())
    assert harmless(sent[0]["EDGE_TASK"], lines=0)
    assert harmless(sent[0]["MESSAGE"], lines=canary.count("\n")), "a task's line may have several"


@canaries
def test_what_edgectl_shows(canary: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = {
        "health": "healthy", "name": canary, "state": canary, "server_url": canary, "airflow_version": canary,
        "server_version": canary, "connected": True, "carrier": canary, "slots_used": 1, "slots_total": 1,
        "queues": [canary], "faults": [canary], "running": [canary], "drained_by": canary, "version": canary, "pid": 1,
        "uptime_seconds": 1, "maintenance": {"by": canary, "comment": canary, "since": canary}, "warnings": [canary],
        "runtime": {"task_sdk": canary, "runtime_python": canary},
    }  # fmt: skip
    answer = _checked({"ok": True, "status": status})["status"]
    assert all(harmless(line, lines=0) for line in show.status(answer))
    job = {
        "job_id": "12345678", "phase": canary, "slots": 1, "log_delivered_bytes": 1, "log_bytes": 1, "task": canary
    }  # fmt: skip
    assert all(harmless(line, lines=0) for line in show.jobs(_checked({"ok": True, "jobs": [job]})["jobs"]))
    assert harmless(_readable(json.dumps({"event": canary, "level": canary})), lines=0)
    assert harmless(_readable(canary.replace("\n", "")), lines=0)
    complain(canary.replace("\n", ""))
    assert harmless(capsys.readouterr().err, lines=1)


def test_a_piece_of_log_stays_as_it_is() -> None:
    piece = "line\n\x1b[31mred\x1b[0m\n"
    assert _checked({"ok": True, "data": piece})["data"] == piece, "for edgectl logs --raw"
