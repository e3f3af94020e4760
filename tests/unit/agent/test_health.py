"""Automatic maintenance and custom metrics."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue

from airflow_edge_agent.adapters.commands import run_json
from airflow_edge_agent.adapters.maintenance_file import MaintenanceFile
from airflow_edge_agent.adapters.metrics import PsutilProbe
from airflow_edge_agent.core.agent import AgentCore
from airflow_edge_agent.core.events import MaintenanceDecided
from airflow_edge_agent.core.health import HealthJudge, Range
from airflow_edge_agent.core.maintenance import MaintenanceMemory, MaintenanceRecord
from airflow_edge_agent.core.policy import Limits
from airflow_edge_agent.ports import StoreError
from airflow_edge_agent.protocol.frames import Heartbeat, MaintenanceAsked, Metrics
from airflow_edge_agent.runtime.health import CustomLoop, CustomPlan, HealthLoop, HealthPlan, deadline_loop
from airflow_edge_agent.runtime.pump import Pump
from fakes import MemoryJobStore, MemoryRunner
from fakes.waiting import eventually

DISK = {"disk_percent": Range(90, 80)}


def make_pump() -> Pump:
    core = AgentCore(Limits(4, kill_grace_seconds=5, drain_deadline_seconds=0))
    return Pump(core, store=MemoryJobStore(), runner=MemoryRunner(), boot_id="b", default_execution_url="x")


def record_of(pump: Pump) -> MaintenanceRecord | None:
    return pump.core.maintenance.record


def by(pump: Pump) -> str | None:
    record = record_of(pump)
    return None if record is None else record.by


@contextlib.asynccontextmanager
async def running(loop: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(loop)
    try:
        yield
    finally:
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# The judge


def verdicts(judge: HealthJudge, *figures: float) -> list[bool]:
    return [judge.look({"disk_percent": figure}) is not None for figure in figures]


def test_it_takes_several_looks_and_has_hysteresis() -> None:
    judge = HealthJudge(DISK, samples=2)
    assert verdicts(judge, 95, 85, 95, 95) == [False, False, False, True]
    assert verdicts(judge, 85, 79, 85, 79, 79) == [True, True, True, True, False]


def test_the_verdict_names_figure_and_limit() -> None:
    judge = HealthJudge(DISK | {"load_per_core": Range(2, 1)}, samples=1)
    assert judge.look({"disk_percent": 93.4, "load_per_core": 0.5}) == "93.4 % of the disk (limit 90)"
    assert judge.look({"load_per_core": 3}) == "93.4 % of the disk (limit 90); 3.0 load per core (limit 2)"
    assert judge.look({}) is not None, "what cannot be measured changes nothing"


# The loop


class Probe:
    def __init__(self) -> None:
        self.disk = 50.0
        self.looks = 0

    def figures(self) -> dict[str, float]:
        self.looks += 1
        return {"disk_percent": self.disk}


async def test_an_unwell_host_goes_into_maintenance_and_comes_back() -> None:
    pump, probe = make_pump(), Probe()
    loop = HealthLoop(pump, probe, HealthPlan(DISK, 0.01, 2))
    async with running(loop.run()):
        await eventually(lambda: probe.looks > 3)
        assert record_of(pump) is None
        probe.disk = 96
        await eventually(lambda: record_of(pump) is not None)
        record = pump.core.maintenance.record
        assert record is not None
        assert (record.by, record.source, record.comment) == ("health", "health", "96.0 % of the disk (limit 90)")
        probe.disk = 20
        await eventually(lambda: record_of(pump) is None)


async def test_what_an_operator_decides_stays() -> None:
    pump, probe = make_pump(), Probe()
    loop = HealthLoop(pump, probe, HealthPlan(DISK, 0.01, 1))
    async with running(loop.run()):
        pump.feed(MaintenanceDecided(on=True, by="alice", at=datetime.now(UTC), comment="mine"))
        for probe.disk in (96.0, 20.0, 96.0):
            seen = probe.looks
            await eventually(lambda seen=seen: probe.looks > seen + 2)  # type: ignore[misc]  # bound at once
            assert record_of(pump) is not None
            assert by(pump) == "alice"
        pump.feed(MaintenanceDecided(on=False, by="alice", at=datetime.now(UTC)))
        seen = probe.looks
        await eventually(lambda: probe.looks > seen + 2)
        assert record_of(pump) is None, "the disk was full before: no new reason"


async def test_without_thresholds_nothing_is_looked_at_and_old_health_maintenance_ends() -> None:
    pump, probe = make_pump(), Probe()
    pump.feed(MaintenanceDecided(on=True, by="health", at=datetime.now(UTC), source="health"))
    loop = HealthLoop(pump, probe, HealthPlan({}, 0.01, 1))
    async with running(loop.run()):
        await eventually(lambda: record_of(pump) is None)
        assert probe.looks == 0
        loop.change(HealthPlan(DISK, 0.01, 1))
        await eventually(lambda: probe.looks > 0)


def test_the_real_probe_has_figures(tmp_path: Path) -> None:
    figures = PsutilProbe(tmp_path).figures()
    assert 0 <= figures["disk_percent"] <= 100
    assert 0 < figures["memory_percent"] <= 100
    assert figures["load_per_core"] >= 0


# Its end


async def test_maintenance_ends_by_itself_also_when_its_time_passed_while_the_agent_was_away() -> None:
    pump = make_pump()
    past = datetime.now(UTC) - timedelta(hours=1)
    pump.feed(MaintenanceDecided(on=True, by="alice", at=past, until=past + timedelta(minutes=1)))
    async with running(deadline_loop(pump)):
        await eventually(lambda: record_of(pump) is None)
        soon = datetime.now(UTC) + timedelta(seconds=0.3)
        pump.feed(MaintenanceDecided(on=True, by="alice", at=datetime.now(UTC), until=soon))
        assert record_of(pump) is not None
        await eventually(lambda: record_of(pump) is None)
        assert datetime.now(UTC) >= soon


def test_it_is_kept_on_disk(tmp_path: Path) -> None:
    file = MaintenanceFile(tmp_path)
    assert file.load() == MaintenanceMemory()
    now = datetime.now(UTC)
    asked = MaintenanceAsked(on=True, by="alice", since=now, comment="x")
    memory = MaintenanceMemory(MaintenanceRecord("alice", now, "x", now + timedelta(hours=1)), asked)
    file.save(memory)
    assert MaintenanceFile(tmp_path).load() == memory
    assert (tmp_path / "maintenance.json").stat().st_mode & 0o777 == 0o600
    file.save(MaintenanceMemory())
    assert not (tmp_path / "maintenance.json").exists()
    (tmp_path / "maintenance.json").write_text('{"record": 1}')
    with pytest.raises(StoreError, match="damaged"):
        file.load()


# Custom metrics


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


async def test_a_command_is_run_and_its_json_taken() -> None:
    assert await run_json(python("print('{\"battery\": 97}')"), 30) == {"battery": 97}


@pytest.mark.parametrize(
    ("code", "seconds", "words"),
    [
        ("import time; time.sleep(60)", 0.2, "takes longer than 0.2 s"),
        ("print('x' * 100_000)", 30, "says more than"),
        ("print('no json')", 30, "prints no JSON"),
        ("print('NaN')", 30, "prints no JSON"),
        ("raise SystemExit(3)", 30, "ended with 3"),
    ],
)
async def test_a_command_that_misbehaves(code: str, seconds: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        await run_json(python(code), seconds)


async def test_a_command_that_is_not_there() -> None:
    with pytest.raises(OSError, match="No such file"):
        await run_json(["/nowhere/at/all"], 1)


async def test_figures_are_bounded_together_and_faults_are_told() -> None:
    async def run(command: list[str], _: float) -> JsonValue:
        if command == ["broken"]:
            raise ValueError("broken: prints no JSON")
        return command[0] * 8_000

    target: dict[str, JsonValue] = {}
    plans = {name: CustomPlan([name], 60, 1) for name in ("a", "b", "broken")}
    loop = CustomLoop(run, target, plans)
    async with running(loop.run()):
        await eventually(lambda: len(target) == 3)
        assert target["a"] == "a" * 8_000
        assert target["b"] == {"error": "all figures together are longer than 16384 bytes"}
        assert target["broken"] == {"error": "broken: prints no JSON"}
        Heartbeat(metrics=Metrics(), sent_at=datetime.now(UTC), custom=target)
        loop.change({"c": CustomPlan(["c"], 60, 1)})
        await eventually(lambda: list(target) == ["c"])
