"""What of the fleet is told to Airflow's metrics, on each database."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from airflow_edge_agent.protocol.frames import TaskMetrics
from airflow_edge_agent.protocol.states import AgentState
from airflow_edge_server.api.task_metrics import TaskMetricsRelay
from airflow_edge_server.store.models import EdgeAgent
from airflow_edge_server.store.queue import EndedJob
from airflow_edge_server.store.transaction import read
from airflow_edge_server.telemetry import METRICS, PREFIX, FleetMetrics
from airflow_edge_server.usage import emit_usage
from integration.server_api.kit import Database

DOCS = Path(__file__).parents[3] / "docs"

pytestmark = pytest.mark.integration


class Backend:
    """Keeps the last value of each gauge."""

    def __init__(self) -> None:
        self.told: dict[str, float] = {}
        self.tags: dict[str, set[str]] = {}

    def gauge(self, name: str, value: float, tags: dict[str, str]) -> None:
        self.tags[name] = set(tags)
        self.told[name.removeprefix(PREFIX) + "".join(f" {value}" for value in tags.values())] = value

    def timing(self, name: str, value: timedelta, tags: dict[str, str]) -> None:
        self.gauge(name, value.total_seconds(), tags)

    def incr(self, name: str, count: int, tags: dict[str, str]) -> None:
        self.gauge(name, count, tags)


def test_the_fleet_is_told_by_state_queue_and_agent(database: Database) -> None:
    metrics = {"cpu_percent": 12.5, "memory_used_bytes": 1, "memory_total_bytes": 4}
    with database.sessions() as session:
        session.add_all(
            [
                EdgeAgent(
                    name="press",
                    state="running",
                    queues=["plant"],
                    granted_queues=["*"],
                    slots_total=4,
                    slots_used=1,
                    metrics=metrics,
                ),
                EdgeAgent(
                    name="lathe",
                    state="offline",
                    queues=["plant"],
                    granted_queues=["*"],
                    slots_total=2,
                    slots_used=2,
                    metrics={},
                ),
            ]
        )
    job_id = database.add_job(queue="moon", queued_at=datetime.now(UTC) - timedelta(seconds=60))
    backend = Backend()
    fleet = FleetMetrics(backend)
    read(database.open, fleet.emit)
    told = backend.told
    assert {name: told[name] for name in ("agents running", "agents offline", "agents idle")} == {
        "agents running": 1,
        "agents offline": 1,
        "agents idle": 0,
    }
    assert (told["slots_total"], told["slots_used"]) == (4, 1)
    assert (told["queue.queued moon"], told["queue.agents_ready moon"], told["queue.agents_ready plant"]) == (1, 0, 1)
    assert told["queue.oldest_seconds moon"] >= 60
    assert (told["agent.connected press"], told["agent.connected lathe"]) == (1, 0)
    assert (told["agent.cpu_percent press"], told["agent.memory_percent press"]) == (12.5, 25)
    assert "agent.disk_percent press" not in told
    assert "agent.cpu_percent lathe" not in told
    assert len([name for name in told if name.startswith("agents ")]) == len(AgentState)
    assert told["agents maintenance_mode"] == 0
    # What is gone does not keep its last value.
    database.set_job(job_id, state="finished")
    with database.sessions() as session:
        session.delete(session.get(EdgeAgent, "press"))
    read(database.open, fleet.emit)
    assert (told["queue.queued moon"], told["queue.oldest_seconds moon"], told["agent.connected press"]) == (0, 0, 0)
    assert {name.split(" ")[0] for name in told} <= set(METRICS)


def test_tags_hold_nothing_that_airflow_would_drop_them_for(database: Database) -> None:
    with database.sessions() as session:
        session.add(
            EdgeAgent(name="press", state="maintenance mode", queues=["grüne halle"], granted_queues=["*"], metrics={})
        )
    backend = Backend()
    read(database.open, FleetMetrics(backend).emit)
    assert backend.told["agents maintenance_mode"] == 1
    assert backend.told["queue.queued gr_ne_halle"] == 0


def test_a_backend_that_fails_stops_nothing(database: Database) -> None:
    read(database.open, FleetMetrics(None).emit)


def test_all_that_is_described_is_emitted_and_dashboard_and_alerts_use_nothing_else(database: Database) -> None:
    metrics = {"cpu_percent": 1, "load_1_per_core": 1, "memory_used_bytes": 1, "memory_total_bytes": 4}
    metrics |= {"state_disk_used_bytes": 1, "state_disk_total_bytes": 4}
    with database.sessions() as session:
        session.add(
            EdgeAgent(
                name="press", state="idle", queues=["plant"], granted_queues=["*"], slots_total=4, metrics=metrics
            )
        )
    backend = Backend()
    read(database.open, FleetMetrics(backend).emit)
    usage = dict.fromkeys(("wall_seconds", "cpu_seconds", "peak_memory_bytes", "io_read_bytes", "io_write_bytes"), 1)
    place = ("dag", "task", "run", -1)
    emit_usage(backend, EndedJob("j", "task", "t", 1, "press", "finished", 0, None, place, "plant", usage, None))
    TaskMetricsRelay(lambda: backend).tell("press", TaskMetrics(metrics=[], dropped=1))
    assert backend.tags == {f"{PREFIX}{name}": set(metric.tags) for name, metric in METRICS.items()}

    known = {f"airflow.{name}".replace(".", "_"): tags for name, tags in backend.tags.items()}
    dashboard = json.loads((DOCS / "monitoring" / "dashboard.json").read_text())
    alerts = yaml.safe_load((DOCS / "monitoring" / "alerts.yaml").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    assert len(queries) > 15
    for query in queries:
        used = set(re.findall(r"\w*edge_agent_\w+", query))
        assert used, query
        assert used <= set(known), query
        labels = set(re.findall(r"by \((\w+)\)", query)) | set(re.findall(r"(\w+)=~?\"", query))
        assert all(labels <= known[name] for name in used), query
    legends = {t["legendFormat"].strip("{}") for panel in dashboard["panels"] for t in panel["targets"]}
    assert legends <= {"state", "queue", "agent", "used", "total"}
