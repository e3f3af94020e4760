"""What tasks ask for, what they have used, and a task runtime that does not work: through a real Airflow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.agent import AgentProcess
from harness.site import AirflowSite
from harness.waiting import wait_until

StartAgent = Callable[..., AgentProcess]

pytestmark = [
    pytest.mark.integration,
    # What the database does with it is tested elsewhere.
    pytest.mark.parametrize("site", ["sqlite"], indirect=True),
]


def listed(site: AirflowSite, name: str) -> dict[str, Any]:
    rows = json.loads(site.cli("edge-agents", "list", "--output", "json"))
    row: dict[str, Any] = next(row for row in rows if row["name"] == name)
    return row


def as_json(value: Any) -> Any:
    # Without its type, SQLite's driver returns the text.
    return json.loads(value) if isinstance(value, str) else value


def test_limits_and_usage(site: AirflowSite, start_agent: StartAgent) -> None:
    site.api.wait_for_dag("limits")
    start_agent()
    run = site.api.trigger_dag("limits")
    assert site.api.wait_for_run("limits", run) == "failed"
    states = {ti.task_id: ti.state for ti in site.api.task_instances("limits", run)}
    assert states == {"modest": "success", "immodest": "failed"}
    rows = site.query(
        "SELECT task_id, limits, usage, outcome FROM edge_agent_job WHERE dag_id = 'limits' ORDER BY task_id"
    )
    (_, none, _, not_started), (_, asked, usage, finished) = rows
    assert (as_json(none), not_started, finished) == (None, "not started", "finished")
    assert as_json(asked) == {"memory_max_bytes": 512 * 2**20, "cpu_quota_percent": 150.0}
    used = as_json(usage)
    assert 0 < used["cpu_seconds"] < 60
    assert 2**20 < used["peak_memory_bytes"] < 2**32
    assert 0 < used["wall_seconds"] < 60
    lines = [line.event for line in site.api.log(site.api.task_instance("limits", run, "immodest"))]
    assert any("'memory_max': 'lots' is no size" in line for line in lines), lines
    assert "must not run" not in lines


def test_a_runtime_that_cannot_be_imported_takes_no_jobs_until_it_is_mended(
    site: AirflowSite, start_agent: StartAgent, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    first.mkdir()
    trap = first / "tenacity.py"
    trap.write_text("raise ModuleNotFoundError(\"No module named 'tenacity'\", name='tenacity')\n")
    env = {"HOME": str(tmp_path), "PYTHONPATH": str(first), "PYTHONDONTWRITEBYTECODE": "1"}
    agent = start_agent(settings={"runner": {"env": env}})
    run = site.api.trigger_dag("everything", conf={"dir": str(tmp_path)})
    wait_until(
        lambda: "No module named 'tenacity'" in listed(site, agent.name)["problem"],
        seconds=60,
        what="the server to show what is wrong with the runtime",
        poll_seconds=1,
    )
    agent.wait_for_log("takes no jobs: the task runtime")
    states = {ti.state for ti in site.api.task_instances("everything", run)}
    assert not states & {"failed", "up_for_retry", "upstream_failed"}, "jobs must go back unharmed"
    offers = [fence for (fence,) in site.query("SELECT fence FROM edge_agent_job WHERE dag_id = 'everything'")]
    trap.unlink()
    assert site.api.wait_for_run("everything", run) == "success"
    assert max(offers) <= 1, "the same job was tried again and again"
    wait_until(lambda: listed(site, agent.name)["problem"] == "", seconds=30, what="the problem to go", poll_seconds=1)
