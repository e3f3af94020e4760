"""Frames with sensible content, for tests that care about one field of them."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from airflow_edge_agent.protocol.frames import (
    AgentFrame,
    Heartbeat,
    Hello,
    Intervals,
    Metrics,
    Offer,
    Status,
    Versions,
    Welcome,
)
from airflow_edge_agent.protocol.states import AgentState


def new_id() -> str:
    return str(uuid.uuid4())


def make_hello(**changes: Any) -> Hello:
    values: dict[str, Any] = {
        "protocol_min": 1,
        "protocol_max": 1,
        "name": "edge-1",
        "agent_id": new_id(),
        "boot_id": "boot",
        "instance_id": new_id(),
        "hostname": "edge-1.example",
        "versions": Versions(agent="0.1.0", python="3.11.7"),
        "queues": ["default"],
        "concurrency": 4,
        "state": AgentState.STARTING,
        "jobs": [],
    }
    return Hello(**(values | changes))


def make_welcome(**changes: Any) -> Welcome:
    values: dict[str, Any] = {
        "protocol": 1,
        "session_id": new_id(),
        "server_version": "0.1.0",
        "airflow_version": "3.3.2",
        "server_time": datetime.now(UTC),
        "intervals": Intervals(),
    }
    return Welcome(**(values | changes))


def make_offer(**changes: Any) -> Offer:
    values: dict[str, Any] = {
        "job_id": new_id(),
        "fence": 1,
        "kind": "task",
        "slots": 1,
        "queue": "default",
        "lease_seconds": 10.0,
        "label": "dag.task",
        "token": "job-token",
        "workload": {},
    }
    return Offer(**(values | changes))


def make_presence() -> list[AgentFrame]:
    return [
        Status(state=AgentState.IDLE, slots_total=4, slots_used=0),
        Heartbeat(metrics=Metrics(cpu_count=4), sent_at=datetime.now(UTC)),
    ]
