"""Dashboard and alert rules in a real Prometheus: what Airflow's metrics come to there, and those of a real agent."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_edge_agent.adapters.credential import Credential
from airflow_edge_agent.adapters.keys import new_private_key
from airflow_edge_agent.runtime import exposition
from airflow_edge_server.telemetry import METRICS, PREFIX
from harness.agent import AgentProcess
from harness.ports import reserve_port
from harness.processes import Keeper
from harness.waiting import wait_until
from monitoring.programs import ALERTS, DASHBOARD, Prometheus, Receiver, promtool

HERE = Path(__file__).parent
ENVIRONMENT = Path(sys.prefix)
CASES = HERE / "alerts_test.yaml"

SUFFIXES = {"gauge": "", "counter": "_total", "timing": "_milliseconds_count"}
"""What Prometheus puts behind the names of what OpenTelemetry sends."""

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def rules() -> dict[str, str]:
    """Return the expression of each alert."""
    document = yaml.safe_load(ALERTS.read_text())
    return {rule["alert"]: rule["expr"] for group in document["groups"] for rule in group["rules"]}


def queries() -> dict[str, str]:
    """Return the query of each panel, for all agents."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return {panel["title"]: target["expr"].replace("$agent", ".+") for panel in panels for target in panel["targets"]}


def test_prometheus_takes_the_rules() -> None:
    assert f"{len(rules())} rules found" in promtool("check", "rules", ALERTS)


def test_each_alert_fires_when_it_should_and_not_before() -> None:
    promtool("test", "rules", CASES)
    seen: dict[str, set[bool]] = {}
    for case in yaml.safe_load(CASES.read_text())["tests"]:
        for asked in case["alert_rule_test"]:
            seen.setdefault(asked["alertname"], set()).add(bool(asked.get("exp_alerts")))
    assert seen == {name: {True, False} for name in rules()}


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Have a Prometheus that knows a fleet with something wrong in it, and an agent."""
    root = tmp_path_factory.mktemp("watched")
    local = f"127.0.0.1:{reserve_port()}"
    with (
        Keeper() as keeper,
        Receiver(root / "receiver", keeper) as receiver,
        Prometheus(root / "prometheus", keeper, receiver, [local]) as prometheus,
        AgentProcess(
            root / "agent",
            keeper=keeper,
            environment=ENVIRONMENT,
            runtime=ENVIRONMENT,
            # Nobody is there: what an agent tells on its machine does not need a server.
            server_url=f"http://127.0.0.1:{reserve_port()}",
            token=Credential("0" * 16, new_private_key()).text(),
            settings={"metrics": {"listen": local}},
        ) as agent,
    ):
        agent.start()
        keeper.spawn(
            "emitting",
            [sys.executable, HERE / "emitting.py", f"sqlite:///{root / 'fleet.db'}"],
            env={
                "PYTHONPATH": str(HERE.parent),
                "AIRFLOW_HOME": str(root / "airflow"),
                "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
                "AIRFLOW__METRICS__OTEL_ON": "True",
                "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": receiver.endpoint,
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_METRIC_EXPORT_INTERVAL": "1000",
            },
            cwd=root,
            log=root / "emitting.log",
        )
        yield prometheus


def test_every_query_of_the_dashboard_has_an_answer(prometheus: Prometheus) -> None:
    asked = queries()

    def silent() -> list[str]:
        return [title for title, query in asked.items() if not prometheus.query(query)]

    wait_until(lambda: not silent(), seconds=120, what="an answer to every query", seen=silent, poll_seconds=1)
    names = prometheus.label_values("agent", f"airflow_{PREFIX.replace('.', '_')}agent_connected")
    assert names == ["mill", "press", "ship"], "the dashboard's variable"


def test_every_metric_reaches_prometheus_under_the_name_that_is_documented(prometheus: Prometheus) -> None:
    told = {
        f"airflow.{PREFIX}{metric.name}".replace(".", "_") + SUFFIXES[metric.kind]: metric.tags
        for metric in METRICS.values()
    }

    def missing() -> list[str]:
        return [name for name, tags in told.items() if not _tagged(prometheus.query(name), tags)]

    wait_until(lambda: not missing(), seconds=120, what="all metrics", seen=missing, poll_seconds=1)


def _tagged(found: list[Any], tags: tuple[str, ...]) -> bool:
    return bool(found) and all(set(tags) <= set(one["metric"]) for one in found)


def test_alerts_see_what_is_wrong(prometheus: Prometheus) -> None:
    def told() -> dict[str, set[str]]:
        return {
            rule["name"]: {
                next((alert["labels"][label] for label in ("agent", "queue") if label in alert["labels"]), "")
                for alert in rule["alerts"]
            }
            for rule in prometheus.rules()
        }

    expected = {
        "EdgeQueueWithoutAgent": {"nowhere"},
        "EdgeQueueWaitsLong": {"nowhere"},
        "EdgeAgentLost": {""},
        "EdgeAgentProblem": {"mill"},
        "EdgeAgentDiskFull": {"press"},
    }
    wait_until(lambda: told() == expected, seconds=120, what="the alerts", seen=told, poll_seconds=1)
    assert all(rule["health"] == "ok" for rule in prometheus.rules())
    for name, expression in rules().items():
        for selector in re.findall(r"\w*edge_agent_\w+(?:\{[^}]*\})?", expression):
            assert prometheus.query(selector), f"{name}: nothing is known of {selector}"


def test_prometheus_reads_the_metrics_of_an_agent(prometheus: Prometheus) -> None:
    wait_until(
        lambda: [one["value"][1] for one in prometheus.query('up{job="edge-agents"}')] == ["1"],
        seconds=60,
        what="the agent to be scraped",
        poll_seconds=1,
    )
    kinds = prometheus.kinds()
    for metric in exposition.METRICS.values():
        # Of an agent that has never been connected.
        if metric.name in {"heartbeat_age_seconds", "contact_age_seconds"}:
            continue
        assert prometheus.query(metric.sample), metric.sample
        assert kinds[f"{exposition.PREFIX}{metric.name}"] == metric.kind
