"""What a real Airflow tells of the fleet to real receivers, and where the logs go with remote logging."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from airflow_edge_server.compat import airflow_version
from airflow_edge_server.telemetry import METRICS, PREFIX
from harness.agent import AgentProcess
from harness.folder_log import VARIABLE
from harness.processes import Keeper
from harness.receivers import OtelReceiver, StatsdReceiver
from harness.site import AirflowSite
from harness.waiting import wait_until
from integration.end_to_end.conftest import DAGS, ENVIRONMENT

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

StartAgent = Callable[..., AgentProcess]

TESTS = Path(__file__).parents[2]

NOT_EVERYWHERE = {"job.io_read_bytes", "job.io_write_bytes", "task_metrics.dropped"}
"""Known only where jobs have cgroups of their own, or where something was dropped."""


@pytest.fixture(scope="module", params=["statsd", "otel"])
def receiver(request: pytest.FixtureRequest) -> Iterator[StatsdReceiver | OtelReceiver]:
    with StatsdReceiver() if request.param == "statsd" else OtelReceiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def site(
    receiver: StatsdReceiver | OtelReceiver, keeper: Keeper, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AirflowSite]:
    if isinstance(receiver, StatsdReceiver):
        backend = {
            "AIRFLOW__METRICS__STATSD_ON": "True",
            "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
            "AIRFLOW__METRICS__STATSD_PORT": str(receiver.port),
            "AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED": "True",
        }
    else:
        backend = {
            "AIRFLOW__METRICS__OTEL_ON": "True",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.port}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_METRIC_EXPORT_INTERVAL": "1000",
            "AIRFLOW__TRACES__OTEL_ON": "True",
            "OTEL_TRACES_EXPORTER": "otlp_proto_http",
            "OTEL_BSP_SCHEDULE_DELAY": "500",
        }
    root = tmp_path_factory.mktemp("site-telemetry")
    logging = {
        "AIRFLOW__LOGGING__LOGGING_CONFIG_CLASS": "harness.folder_log.LOGGING_CONFIG",
        "PYTHONPATH": str(TESTS),
        VARIABLE: f"file://{root}/remote",
    }
    relay = {"AIRFLOW__EDGE_AGENT__RELAY_TASK_METRICS": "True"}
    site = AirflowSite(
        root, keeper=keeper, environment=ENVIRONMENT, bundles={"probes": DAGS}, settings=backend | logging | relay
    )
    with site:
        site.start()
        for dag_id in ("steps", "telling"):
            site.api.wait_for_dag(dag_id)
        yield site


def test_what_is_told_arrives_under_the_names_that_are_documented(
    site: AirflowSite, receiver: StatsdReceiver | OtelReceiver, start_agent: StartAgent, tmp_path: Path
) -> None:
    start_agent("edge-told", concurrency=3)
    (tmp_path / "go").touch()
    run = site.api.trigger_dag("steps", conf={"dir": str(tmp_path)})
    assert site.api.wait_for_run("steps", run) == "success"
    prefix = f"airflow.{PREFIX}"

    def told() -> set[str]:
        return {one.name.removeprefix(prefix) for one in receiver.told if one.name.startswith(prefix)}

    wait_until(
        lambda: set(METRICS) - NOT_EVERYWHERE <= told(),
        seconds=120,
        what="all metrics to arrive",
        seen=lambda: f"missing: {sorted(set(METRICS) - told())}",
    )
    assert told() <= set(METRICS)
    # Before 3.3, Airflow tells OpenTelemetry of times as if each were the only one.
    old = isinstance(receiver, OtelReceiver) and airflow_version().startswith("3.2.")
    receiver_timing = "gauge" if old else "timing"
    for one in receiver.told:
        if one.name.startswith(prefix):
            metric = METRICS[one.name.removeprefix(prefix)]
            assert {name for name, _ in one.tags} == set(metric.tags), one
            assert one.kind == (receiver_timing if metric.kind == "timing" else metric.kind), one
    assert receiver.last(f"{prefix}agent.connected", agent="edge-told") == 1
    assert receiver.last(f"{prefix}agent.slots_total", agent="edge-told") == 3
    assert receiver.last(f"{prefix}agents", state="maintenance_mode") == 0
    of_job = {"dag_id": "steps", "task_id": "stepwise", "queue": "default", "agent": "edge-told"}
    wall = receiver.last(f"{prefix}job.wall_time", **of_job)
    assert wall is not None
    assert 10 < wall < 120_000, "milliseconds"


def test_a_finished_log_is_in_the_remote_store_and_read_from_there(
    site: AirflowSite, receiver: StatsdReceiver | OtelReceiver, start_agent: StartAgent, tmp_path: Path
) -> None:
    if isinstance(receiver, OtelReceiver):
        pytest.skip("the metrics' receiver has nothing to do with it: seen with the other one")
    start_agent()
    (tmp_path / "go").touch()
    run = site.api.trigger_dag("steps", conf={"dir": str(tmp_path)})
    assert site.api.wait_for_run("steps", run) == "success"
    ti = site.api.task_instance("steps", run, "stepwise")
    ((job_id, workload),) = site.query(f"SELECT id, workload FROM edge_agent_job WHERE run_id = '{run}'")
    remote = site.root / "remote" / json.loads(workload)["log_path"]
    wait_until(
        lambda: site.query(f"SELECT hand_over FROM edge_agent_job WHERE id = '{job_id}'") == [("done",)],
        seconds=120,
        what="the log to be handed over",
    )
    stored = b"".join(
        row[0] for row in site.query(f"SELECT data FROM edge_agent_log WHERE job_id = '{job_id}' ORDER BY \"offset\"")
    )
    assert remote.read_bytes() == stored
    before = [line.event for line in site.api.log(ti)]
    assert f"file://{remote}" in before, "it is read there already"
    with closing(sqlite3.connect(site.home / "airflow.db", timeout=60)) as database:
        database.execute("DELETE FROM edge_agent_log WHERE job_id = ?", (job_id,))
        database.execute("UPDATE edge_agent_job SET log_next_offset = 0, log_key = NULL WHERE id = ?", (job_id,))
        database.commit()
    assert not list((site.home / "logs").rglob("dag_id=steps/**/*.log")), "nothing on the api-server's disk"
    after = [line.event for line in site.api.log(ti)]
    assert after == before
    lines = [line for line in after if line.startswith("line ")]
    assert lines == [(f"line {number} " + "x" * (number % 97)).rstrip() for number in range(200)]


def test_a_job_is_a_span_of_its_task_and_both_ends_name_the_trace(
    site: AirflowSite, receiver: StatsdReceiver | OtelReceiver, start_agent: StartAgent, tmp_path: Path
) -> None:
    if isinstance(receiver, StatsdReceiver):
        pytest.skip("only OpenTelemetry has traces")
    agent = start_agent(settings={"log": {"format": "json"}})
    (tmp_path / "go").touch()
    run = site.api.trigger_dag("steps", conf={"dir": str(tmp_path)})
    assert site.api.wait_for_run("steps", run) == "success"
    ((job_id, workload),) = site.query(f"SELECT id, workload FROM edge_agent_job WHERE run_id = '{run}'")
    _, trace_id, parent, _ = json.loads(workload)["ti"]["context_carrier"]["traceparent"].split("-")

    def spans() -> list[Any]:
        return [one for one in receiver.spans if one.name == "edge_agent.job" and one.trace_id.hex() == trace_id]

    wait_until(spans, seconds=60, what="the span of the job")
    (span,) = spans()
    assert span.parent_span_id.hex() == parent
    told = {attribute.key: attribute.value for attribute in span.attributes}
    assert told["edge_agent.job_id"].string_value == job_id
    assert told["edge_agent.outcome"].string_value == "finished"
    assert [event.name for event in span.events] == ["offered", "accepted", "started"]
    times = [span.start_time_unix_nano, *(e.time_unix_nano for e in span.events), span.end_time_unix_nano]
    assert times == sorted(times)
    of_task = [one for one in receiver.spans if one.trace_id.hex() == trace_id and one.name != "edge_agent.job"]
    assert of_task, "Airflow's own spans are in the same trace"
    lines = [json.loads(line) for line in agent.log_text().splitlines() if line.startswith("{")]
    of_job = [line for line in lines if line.get("job") == job_id]
    assert [line["edge_event"] for line in of_job] == ["job_started", "job_ended"]
    assert {(line["trace_id"], line["span_id"]) for line in of_job} == {(trace_id, parent)}


def test_what_a_task_tells_arrives_at_the_centre(
    site: AirflowSite, receiver: StatsdReceiver | OtelReceiver, start_agent: StartAgent
) -> None:
    start_agent("edge-teller", settings={"metrics": {"relay_statsd": True}})
    run = site.api.trigger_dag("telling")
    assert site.api.wait_for_run("telling", run) == "success"
    own = {"line": "3", "agent": "edge-teller"}
    wait_until(
        lambda: receiver.last("airflow.press.parts", **own) is not None,
        seconds=90,
        what="the task's metrics to arrive",
        seen=lambda: sorted({one.name for one in receiver.told}),
    )
    assert receiver.last("airflow.press.parts", **own) == 5
    assert receiver.last("airflow.press.level", agent="edge-teller") == 2.5
    assert receiver.last("airflow.press.weighing", agent="edge-teller") == 1_250
    wait_until(
        lambda: receiver.last("airflow.ti.finish", task_id="tell", agent="edge-teller") == 1,
        seconds=90,
        what="what the Task SDK tells of the task to arrive",
        seen=lambda: sorted({one.name for one in receiver.told}),
    )


def test_without_the_setting_a_task_tells_nothing(
    site: AirflowSite, receiver: StatsdReceiver | OtelReceiver, start_agent: StartAgent
) -> None:
    if isinstance(receiver, OtelReceiver):
        pytest.skip("seen with the other one")
    agent = start_agent("edge-silent")
    run = site.api.trigger_dag("telling")
    assert site.api.wait_for_run("telling", run) == "success"
    assert not (agent.state_dir / "statsd-port").exists()
    assert receiver.last("airflow.press.parts", agent="edge-silent") is None
