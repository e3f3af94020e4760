"""Writes metrics.md from what server and agent can tell. ``python docs/metrics.py`` rewrites the file."""

from __future__ import annotations

from pathlib import Path

from airflow_edge_agent.core.statsd import MAX_ALL_TIMINGS, MAX_LINES, MAX_NAME_BYTES
from airflow_edge_agent.protocol.frames import MAX_METRIC_TAGS, MAX_TASK_METRICS, MAX_TIMINGS
from airflow_edge_agent.runtime import exposition
from airflow_edge_agent.runtime.task_metrics import FLUSH_SECONDS, KEEP_SECONDS
from airflow_edge_server.api.task_metrics import FRAMES_PER_SECOND, MAX_SERIES
from airflow_edge_server.telemetry import EMIT_SECONDS, METRICS, PREFIX, TASK_METRICS_DROPPED

PAGE = Path(__file__).parent / "metrics.md"

INTRODUCTION = f"""\
# Metrics

This page is written from the code (`python docs/metrics.py`); a test compares the two, and nothing else is emitted
but what tasks tell. There are those that the server gives to Airflow, those of tasks, and those that an agent tells on
its own machine.

## Of the server, through Airflow

They go where Airflow's own metrics go: StatsD (`[metrics] statsd_on`) or OpenTelemetry (`otel_on`). They tell agents,
queues and states apart by tags. Plain StatsD has none: set `statsd_influxdb_enabled` or `statsd_datadog_enabled`, or
use OpenTelemetry. `[metrics] metrics_allow_list` and `metrics_block_list` count for these, too. Airflow puts its prefix
before their names: `airflow.`, unless `statsd_prefix` or `otel_prefix` says otherwise. In tags, whatever is no letter
of ASCII, digit, `_`, `.`, `-` or `/` is an underscore: `maintenance_mode`.

Each scheduler tells how the fleet is every {EMIT_SECONDS:g} s, in four statements for any number of agents; what a
job used is told once, by the scheduler that sees its end. Where there are several schedulers, take the maximum of the
gauges. Of an agent that is not connected, only `connected` and `problem` are told, of a removed one `connected` once
more: what a backend keeps of its other gauges is of the past.

In Prometheus, dots are underscores, and `airflow_` comes before the names: `airflow_edge_agent_queue_queued`. What
comes by OpenTelemetry has `_total` behind counters, and timings are histograms: `_milliseconds_count`,
`_milliseconds_sum` and their buckets. Each process that tells has a `service_instance_id`. A StatsD exporter has to
keep tags as labels.

[dashboard.json](monitoring/dashboard.json) is a dashboard for Grafana, and [alerts.yaml](monitoring/alerts.yaml) has
example rules for Prometheus; both use gauges alone, whose names are the same either way. Tests hold this page to the
names, kinds and tags that a real Airflow with agents sends to a StatsD and to an OpenTelemetry receiver. `make
test-monitoring` sends all of them with Airflow's own code to a receiver of OpenTelemetry (VictoriaMetrics), from there
to a Prometheus, and lets a Prometheus ask an agent: each query of the dashboard has an answer there, and each rule sees
what is wrong. `promtool` tries when each alert fires and when it does not. The dashboard is held to Grafana's own model
of one (`@grafana/schema`), but no Grafana has shown it; and no StatsD exporter was tried.

| metric | kind | tags | meaning |
| --- | --- | --- | --- |
"""


TRACES = """
## Traces

With `[traces] otel_on`, the scheduler that sees the end of a job tells a span `edge_agent.job`, from the queue to the
end, as a child of the task instance's, with events `offered`, `accepted` and `started`, and attributes
`edge_agent.job_id`, `queue`, `agent`, `outcome`, `offers` and `exit_code`. Lines of the agent's log about a job have
the fields `trace_id` and `span_id` (in the journal `AIRFLOW_TRACE_ID` and `AIRFLOW_SPAN_ID`); those of the
scheduler and the agent API about a job that goes back to its queue or to its agent, is lost or has failed, end with
both.
"""

AGENT = f"""
## Of tasks, through their agent

Off by default. What tasks tell with Airflow's `Stats` (`from airflow.sdk.observability.stats import Stats`), and what
Airflow's Task SDK tells of them (`ti.finish`, `task.duration`, ...), can go through the agent to the metrics of the
api-server that the agent is connected to. Both ends have to want it:

```
[metrics]                        # of the agent
relay_statsd = true
```

```
[edge_agent]                     # of Airflow
relay_task_metrics = True
```

The agent takes StatsD's lines on a UDP port of 127.0.0.1, any free one, and sets `AIRFLOW__METRICS__STATSD_*` for the
processes of tasks, without a prefix and with tags as InfluxDB has them. If `runner.env` or an `airflow.cfg` sets
`statsd_on`, `statsd_datadog_enabled` or `otel_on` in `[metrics]`, that counts, and nothing is relayed. The task runtime
needs the package `statsd` for it: that of our packages has it, and `edgectl doctor` says if another does not. After a
restart of the agent the port is the same, unless somebody else has taken it.

The server tells each under its own name, as if the task ran there: Airflow puts its prefix before it, its lists of what
to tell count, and the legacy name is told, too, if `legacy_names_on`. The tag `agent` names the agent, whatever the
task says. Names that begin with `{PREFIX}` are not taken. Otherwise an agent, and whoever can send to the port on its
machine, may tell metrics under every name, also those of Airflow's own: switch it on for sites whose figures you
believe.

- Understood are counters, gauges (a sign: to be added) and timings, with a sampling rate, which counters are divided
  by, and tags in InfluxDB's or Datadog's manner. Each {FLUSH_SECONDS:g} s, if there is something, one frame is sent:
  sums of counters, last values of gauges, and every single timing.
- Names are 1 to 250 letters of ASCII, digits, `_`, `.`, `-` and `/`; what has others is dropped. A metric has at most
  {MAX_METRIC_TAGS} tags; what is no such character in a value of theirs becomes an underscore.
- A frame has at most {MAX_TASK_METRICS} metrics, {MAX_TIMINGS} values of one timing, {MAX_ALL_TIMINGS} of all, and
  {MAX_NAME_BYTES // 1024} KiB of names and tags, out of {MAX_LINES} lines. The server listens to an agent every
  {1 / FRAMES_PER_SECOND:g} s in the long run, and takes {MAX_SERIES} different metrics of it in an hour. The rest is
  dropped and counted: `{PREFIX}{TASK_METRICS_DROPPED}`.
- It is best effort. Nothing is put on disk or sent again: while the link is away, {KEEP_SECONDS:g} s are kept and then
  counted as dropped; what is on its way when it breaks is lost.

## Of an agent, on its machine

Off by default. With `listen` in the [agent's configuration](configuration.md#metrics), the agent answers `GET /metrics`
with [OpenMetrics](https://prometheus.io/docs/specs/om/open_metrics_spec/) text, on a unix socket or a loopback address:

```
[metrics]
listen = "127.0.0.1:9464"        # or "/run/airflow-edge-agent/metrics.sock"
```

```
curl http://127.0.0.1:9464/metrics
curl --unix-socket /run/airflow-edge-agent/metrics.sock http://agent/metrics
```

Everybody on the machine may read them: they name no Dags, tasks or queues. At most 8 may ask at a time, with at most
8 KiB and within 5 s. If the address cannot be had, the agent works without, and says so in its log and in `edgectl
status`.

| metric | kind | labels | meaning |
| --- | --- | --- | --- |
"""


def page() -> str:
    """Return what is to be in the file."""
    rows = [
        f"| `{PREFIX}{metric.name}` | {metric.kind} | {', '.join(metric.tags)} | {metric.meaning} |\n"
        for metric in METRICS.values()
    ]
    told = [
        f"| `{metric.sample}` | {metric.kind} | {', '.join(metric.labels)} | {metric.meaning} |\n"
        for metric in exposition.METRICS.values()
    ]
    return "".join((INTRODUCTION, *rows, TRACES, AGENT, *told))


if __name__ == "__main__":
    PAGE.write_text(page())
