"""Airflow's own commands and processes with our package installed."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from integration.server.conftest import Lab

pytestmark = pytest.mark.integration

# What the commands do to the tables is tested on each database elsewhere.
once = pytest.mark.parametrize("lab", ["sqlite"], indirect=True)

TOKEN = re.compile(r"eaj_[0-9a-f]{16}_[A-Za-z0-9_-]{43}")


def test_migrating_again_changes_nothing_and_the_check_passes(lab: Lab) -> None:
    lab.airflow("db", "migrate")
    lab.airflow("db", "check-migrations", "--migration-wait-timeout", "10")


def test_reset_drops_the_tables_and_everyone_says_what_to_do(lab: Lab) -> None:
    lab.airflow("edge-agents", "enroll", "--name", "before-reset")
    lab.airflow("db", "reset", "--yes", "--skip-init")
    try:
        done = lab.airflow("edge-agents", "list", check=False)
        assert done.returncode == 1
        (line,) = done.stderr.strip().splitlines()
        assert line.endswith("are missing in the metadata database: run `airflow db migrate`")
        _airflow_alone(lab)
        # Airflow itself swallows the status with which an executor ends a scheduler.
        done = lab.airflow("scheduler", "--num-runs", "1", "--skip-serve-logs", check=False)
        output = done.stdout + done.stderr
        assert "EdgeExecutor cannot start: the tables of airflow-edge-server are missing" in output
        assert "run `airflow db migrate`" in output
        assert "Traceback" not in output
    finally:
        lab.airflow("db", "migrate")
    assert json.loads(lab.airflow("edge-agents", "list", "--output", "json").stdout) == []


def _airflow_alone(lab: Lab) -> None:
    """Make all of Airflow's tables, and none of ours."""
    lab.airflow("db", "migrate")
    lab.python(
        "from airflow.utils.session import create_session\n"
        "from airflow_edge_server.store.db import EdgeAgentDBManager\n"
        "with create_session(scoped=False) as session:\n"
        "    EdgeAgentDBManager(session).resetdb(skip_init=True)\n"
    )


def test_a_real_scheduler_respects_parallelism_beside_another_executor(lab: Lab) -> None:
    settings = {
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor,airflow_edge_server.executor.EdgeExecutor",
        "AIRFLOW__CORE__PARALLELISM": "2",
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.1",
        # What a scheduler leaves behind is adopted by the next one at once.
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "1",
    }
    lab.run("integration.server.scenario_scheduler:_five_tasks_wait")
    lab.airflow("scheduler", "--num-runs", "6", "--skip-serve-logs", env=settings)
    lab.run("integration.server.scenario_scheduler:_then_two_are_queued")
    lab.airflow("scheduler", "--num-runs", "10", "--skip-serve-logs", env=settings)
    lab.run("integration.server.scenario_scheduler:_then_the_next_ones_are")


@once
def test_a_join_token_is_shown_once_and_alone(lab: Lab) -> None:
    done = lab.airflow("edge-agents", "enroll", "--name", "site-1", "--queues", "press, oven", "--team", "plant")
    assert TOKEN.fullmatch(done.stdout.strip()), "nothing but the token on standard output"
    token = done.stdout.strip()
    assert token not in done.stderr
    assert "edgectl enroll http" in done.stderr
    assert "--name site-1" in done.stderr
    many = (
        "--name",
        "site-*",
        "--uses",
        "3",
        "--expires",
        "2d",
        "--server-url",
        "https://air.example/",
        "--output",
        "json",
    )
    (as_json,) = json.loads(lab.airflow("edge-agents", "enroll", *many).stdout)
    assert TOKEN.fullmatch(as_json["token"])
    assert as_json["commands"][0] == "sudo edgectl enroll https://air.example"
    token_id = token.split("_")[1]
    listed = lab.airflow("edge-agents", "join-tokens", "list", "--output", "json").stdout
    assert token.split("_", 2)[2] not in listed
    rows = {row["id"]: row for row in json.loads(listed)}
    assert (rows[token_id]["names"], rows[token_id]["queues"], rows[token_id]["team"]) == (
        "site-1",
        "oven,press",
        "plant",
    )
    assert (rows[as_json["id"]]["queues"], rows[as_json["id"]]["uses_left"]) == ("default", "3")
    # The whole token works too, and is not repeated.
    done = lab.airflow("edge-agents", "join-tokens", "revoke", token)
    assert token not in done.stdout + done.stderr
    rows = {
        row["id"]: row
        for row in json.loads(lab.airflow("edge-agents", "join-tokens", "list", "--output", "json").stdout)
    }
    assert rows[token_id]["revoked"]


@once
def test_maintenance_of_an_agent_that_is_away(lab: Lab) -> None:
    lab.run("integration.server.scenario_enrolment:_site_2")
    lab.airflow("edge-agents", "maintenance", "on", "site-2", "--comment", "new disk")
    listed = lab.airflow("edge-agents", "list", "--output", "plain").stdout
    line = next(line for line in listed.splitlines() if line.startswith("site-2"))
    assert "offline maintenance" in line
    assert "new disk" in line
    lab.airflow("edge-agents", "maintenance", "off", "site-2")
    rows = json.loads(lab.airflow("edge-agents", "list", "--output", "json").stdout)
    assert next(row["state"] for row in rows if row["name"] == "site-2") == "offline"


@once
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("enroll", "--name", "no spaces"), "'no spaces' is no name or pattern"),
        (("enroll", "--name", "a", "--expires", "soon"), "'soon' is no span of time"),
        (("join-tokens", "revoke", "0000"), "there is no join token with the id '0000'"),
        (("revoke", "nobody"), "there is no agent called 'nobody'"),
        (("maintenance", "on", "nobody"), "there is no agent called 'nobody'"),
    ],
)
def test_bad_input_is_one_line(lab: Lab, args: tuple[str, ...], message: str) -> None:
    done = lab.airflow("edge-agents", *args, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
