"""Where a task's metrics are led, and whose word counts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_edge_agent.runner import statsd

PROGRAM = (
    "import os; from airflow_edge_agent.runner import statsd; statsd.lead_to(8130)\n"
    "from airflow.sdk.configuration import conf\n"
    "print(*(conf.get('metrics', n) for n in ('statsd_on', 'statsd_host', 'statsd_port')))\n"
    "print(repr(conf.get('metrics', 'statsd_prefix')), conf.get('metrics', 'otel_on'))\n"
)


def run(home: Path, **environment: str) -> list[str]:
    """Be a task of the real Task SDK, as far as its configuration."""
    base = {"AIRFLOW_HOME": str(home), "PATH": os.environ["PATH"], "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=base | environment, capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.splitlines()[-2:]


def test_it_is_led_to_the_agent_where_nothing_is_configured(tmp_path: Path) -> None:
    assert run(tmp_path) == ["True 127.0.0.1 8130", "'' False"]


def test_what_a_file_of_airflows_configuration_says_counts(tmp_path: Path) -> None:
    (tmp_path / "airflow.cfg").write_text("[metrics]\nstatsd_on = True\nstatsd_host = metrics.example.com\n")
    assert run(tmp_path) == ["True metrics.example.com 8125", "'airflow' False"]


@pytest.mark.parametrize("name", statsd.OWN)
def test_what_the_operator_sets_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in statsd.OWN:
        monkeypatch.delenv(f"AIRFLOW__METRICS__{other}", raising=False)
    monkeypatch.setenv(f"AIRFLOW__METRICS__{name}", "False")
    before = dict(os.environ)
    statsd.lead_to(8_130)
    assert dict(os.environ) == before
