"""Automatic maintenance, and what the site's own commands measure."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog
from pydantic import JsonValue

from airflow_edge_agent.core.events import MaintenanceDecided
from airflow_edge_agent.core.health import HealthJudge, Range
from airflow_edge_agent.ports import HealthProbe
from airflow_edge_agent.protocol.frames import MAX_CUSTOM_BYTES
from airflow_edge_agent.runtime.pump import Pump

log = structlog.get_logger()

BY = "health"

RunCommand = Callable[[list[str], float], Awaitable[JsonValue]]
"""Runs a program for at most so many seconds and returns its JSON. Raises ``OSError`` or ``ValueError``."""


@dataclass(frozen=True)
class HealthPlan:
    """What to look at."""

    ranges: dict[str, Range]
    interval_seconds: float
    samples: int


@dataclass(frozen=True)
class CustomPlan:
    """A command to run."""

    command: list[str]
    interval_seconds: float
    timeout_seconds: float


class HealthLoop:
    """Puts the agent into maintenance while the host is unwell. What operators decide stays as it is."""

    def __init__(self, pump: Pump, probe: HealthProbe, plan: HealthPlan) -> None:
        self._pump = pump
        self._probe = probe
        self._plan = plan
        self._changed = asyncio.Event()

    def change(self, plan: HealthPlan) -> None:
        """Go by another plan from now on."""
        if plan != self._plan:
            self._plan = plan
            self._changed.set()

    async def run(self) -> None:
        """Look, as long as there is something to look at."""
        while True:
            self._changed.clear()
            plan = self._plan
            judge = HealthJudge(plan.ranges, plan.samples)
            if not plan.ranges:
                self._act(None)
            while not self._changed.is_set():
                if plan.ranges:
                    before = judge.verdict
                    verdict = judge.look(self._probe.figures())
                    if (verdict is None) != (before is None):
                        self._act(verdict)
                try:
                    timeout = plan.interval_seconds if plan.ranges else None
                    await asyncio.wait_for(self._changed.wait(), timeout)
                except TimeoutError:
                    continue

    def _act(self, verdict: str | None) -> None:
        record = self._pump.core.maintenance.record
        if verdict is not None and record is None:
            self._pump.feed(MaintenanceDecided(on=True, by=BY, at=datetime.now(UTC), comment=verdict, source="health"))
        elif verdict is None and record is not None and record.source == "health":
            self._pump.feed(MaintenanceDecided(on=False, by=BY, at=datetime.now(UTC), source="health"))


@dataclass
class CustomLoop:
    """Runs the site's own commands, each at its own pace, one after the other."""

    run_command: RunCommand
    target: dict[str, JsonValue]
    """Where the figures go, by the commands' names."""
    plans: Mapping[str, CustomPlan]
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _faults: dict[str, str] = field(default_factory=dict)

    def change(self, plans: Mapping[str, CustomPlan]) -> None:
        """Run other commands from now on."""
        if plans != self.plans:
            self.plans = plans
            self._changed.set()

    async def run(self) -> None:
        """Run them until cancelled."""
        while True:
            self._changed.clear()
            due = dict.fromkeys(self.plans, time.monotonic())
            for name in set(self.target) - set(due):
                del self.target[name]
            while not self._changed.is_set():
                now = time.monotonic()
                for name in [name for name, at in due.items() if at <= now]:
                    await self._measure(name, self.plans[name])
                    due[name] = now + self.plans[name].interval_seconds
                try:
                    wait = max(0.0, min(due.values()) - time.monotonic()) if due else None
                    await asyncio.wait_for(self._changed.wait(), wait)
                except TimeoutError:
                    continue

    async def _measure(self, name: str, plan: CustomPlan) -> None:
        try:
            figure = await self.run_command(plan.command, plan.timeout_seconds)
            others = {other: value for other, value in self.target.items() if other != name}
            if len(json.dumps(others | {name: figure}, allow_nan=False)) > MAX_CUSTOM_BYTES - 512:
                raise ValueError(f"all figures together are longer than {MAX_CUSTOM_BYTES} bytes")  # noqa: TRY301
        except (OSError, ValueError) as error:
            figure = {"error": str(error)[:200]}
            if self._faults.get(name) != str(error):
                log.warning("a custom metric cannot be had", metric=name, reason=str(error)[:500])
            self._faults[name] = str(error)
        else:
            self._faults.pop(name, None)
        self.target[name] = figure


async def deadline_loop(pump: Pump) -> None:
    """End maintenance that was asked for until a certain time. By wall time, which may be put right meanwhile."""
    longest = 30.0
    while True:
        pump.maintenance_changed.clear()
        record = pump.core.maintenance.record
        left = None
        if record is not None and record.until is not None:
            left = (record.until - datetime.now(UTC)).total_seconds()
            if left <= 0:
                pump.feed(MaintenanceDecided(on=False, by="edge-agent", at=datetime.now(UTC)))
                continue
        try:
            await asyncio.wait_for(pump.maintenance_changed.wait(), None if left is None else min(left, longest))
        except TimeoutError:
            continue
