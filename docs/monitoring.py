"""Writes the Grafana dashboard and the example alert rules. ``python docs/monitoring.py`` rewrites the files.

Both are for Prometheus behind OpenTelemetry or a StatsD exporter that keeps tags as labels: dots become underscores.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from airflow_edge_server.telemetry import METRICS, PREFIX

FOLDER = Path(__file__).parent / "monitoring"
DASHBOARD = FOLDER / "dashboard.json"
ALERTS = FOLDER / "alerts.yaml"

_WIDTH, _HEIGHT, _ACROSS = 8, 7, 3


def series(name: str) -> str:
    """Return what Prometheus calls a metric, with the prefix that Airflow gives to all of its own.

    :raises KeyError: when nothing of that name is emitted.
    """
    return f"airflow.{PREFIX}{METRICS[name].name}".replace(".", "_")


def _of_connected(query: str) -> str:
    """Leave out agents that are gone: their last figures stay until whoever told them is started anew."""
    return f"{query} and on (agent) max by (agent) ({series('agent.connected')}) == 1"


def _one_agent(name: str) -> str:
    return f'max by (agent) ({series(name)}{{agent=~"$agent"}})'


PANELS: list[tuple[str, str, str, str]] = [
    ("Agents by state", f"sum by (state) (max by (state) ({series('agents')})) > 0", "{{state}}", "short"),
    ("Slots in use", f"max({series('slots_used')})", "used", "short"),
    ("Slots", f"max({series('slots_total')})", "total", "short"),
    ("Waiting jobs by queue", f"max by (queue) ({series('queue.queued')})", "{{queue}}", "short"),
    ("Running jobs by queue", f"max by (queue) ({series('queue.running')})", "{{queue}}", "short"),
    ("Oldest waiting job by queue", f"max by (queue) ({series('queue.oldest_seconds')})", "{{queue}}", "s"),
    ("CPU", _of_connected(_one_agent("agent.cpu_percent")), "{{agent}}", "percent"),
    ("Memory", _of_connected(_one_agent("agent.memory_percent")), "{{agent}}", "percent"),
    ("Disk", _of_connected(_one_agent("agent.disk_percent")), "{{agent}}", "percent"),
    ("Load per core", _of_connected(_one_agent("agent.load_1_per_core")), "{{agent}}", "short"),
    ("Slots in use by agent", _of_connected(_one_agent("agent.slots_used")), "{{agent}}", "short"),
    ("Peak memory of jobs", _one_agent("job.peak_memory_bytes"), "{{agent}}", "bytes"),
]
"""Title, query, legend and unit."""

RULES: list[tuple[str, str, str, str, str]] = [
    (
        "EdgeQueueWithoutAgent",
        f"max by (queue) ({series('queue.queued')}) > 0 and max by (queue) ({series('queue.agents_ready')}) == 0",
        "5m",
        "critical",
        "Jobs wait in queue {{ $labels.queue }}, and no agent takes any from it.",
    ),
    (
        "EdgeQueueWaitsLong",
        f"max by (queue) ({series('queue.oldest_seconds')}) > 900",
        "5m",
        "warning",
        "The oldest job of queue {{ $labels.queue }} has waited for {{ $value | humanizeDuration }}.",
    ),
    (
        "EdgeAgentLost",
        f'max({series("agents")}{{state="unknown"}}) > 0',
        "10m",
        "warning",
        "Agents that have not been heard of: {{ $value }}.",
    ),
    (
        "EdgeAgentProblem",
        _of_connected(f"max by (agent) ({series('agent.problem')}) == 1"),
        "10m",
        "warning",
        "Agent {{ $labels.agent }} reports a problem and takes no jobs.",
    ),
    (
        "EdgeAgentDiskFull",
        _of_connected(f"max by (agent) ({series('agent.disk_percent')}) > 90"),
        "15m",
        "warning",
        "The disk of agent {{ $labels.agent }} is {{ $value | humanize }} % full.",
    ),
]
"""Name, expression, for how long, severity and what to say."""


def dashboard() -> str:
    """Return what is to be in the dashboard's file."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    panels: list[dict[str, Any]] = []
    for number, (title, query, legend, unit) in enumerate(PANELS):
        place = {"x": number % _ACROSS * _WIDTH, "y": number // _ACROSS * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}
        panels.append(
            {
                "id": number + 1,
                "title": title,
                "type": "timeseries",
                "datasource": source,
                "gridPos": place,
                "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                "targets": [{"refId": "A", "datasource": source, "expr": query, "legendFormat": legend}],
            }
        )
    variables = [
        {"name": "datasource", "type": "datasource", "query": "prometheus"},
        {
            "name": "agent",
            "type": "query",
            "datasource": source,
            "query": f"label_values({series('agent.connected')}, agent)",
            "multi": True,
            "includeAll": True,
            "refresh": 2,
        },
    ]
    document = {
        "title": "Edge agents",
        "uid": "airflow-edge-agents",
        "schemaVersion": 39,
        "tags": ["airflow", "edge"],
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "1m",
        "templating": {"list": variables},
        "panels": panels,
    }
    return json.dumps(document, indent=1) + "\n"


def alerts() -> str:
    """Return what is to be in the alerts' file."""
    lines = ["groups:", "  - name: edge-agents", "    rules:"]
    for name, expression, wait, severity, summary in RULES:
        lines += [
            f"      - alert: {name}",
            f"        expr: {json.dumps(expression)}",
            f"        for: {wait}",
            f"        labels: {{severity: {severity}}}",
            f"        annotations: {{summary: {json.dumps(summary)}}}",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    DASHBOARD.write_text(dashboard())
    ALERTS.write_text(alerts())
