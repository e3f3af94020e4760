from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from bench.figure import Figure, percentile
from bench.report import Column, table, write_json
from demo.run import describe
from harness.agent import to_toml
from harness.rest import LogLine
from harness.waiting import WaitTimeoutError, wait_until


def test_toml_reads_back_as_what_was_written() -> None:
    settings = {
        "name": 'quote " backslash \\ umlaut \u00e4',
        "concurrency": 4,
        "allow_plain_http": False,
        "queues": ["a", "b c"],
        "runner": {"idle_seconds": 1.5, "env": {"A.B": "x=1"}},
        "bundles": {"with.dot": {"path": "/dags"}},
    }
    assert tomllib.loads(to_toml(settings)) == settings


@pytest.mark.parametrize(("percent", "expected"), [(50, 3), (95, 5), (100, 5), (1, 1)])
def test_percentile_is_one_of_the_samples(percent: float, expected: float) -> None:
    assert percentile([5, 1, 4, 2, 3], percent) == expected


def test_bench_table_shows_targets_and_ratios() -> None:
    ours = Column("airflow-edge-agent", "sqlite", [Figure("cpu", "CPU", 0.1, 0.12), Figure("pss", "PSS", 40, 35)])
    peer = Column("edge3", "sqlite", [Figure("cpu", "CPU", 0.5, 0.12), Figure("pss", "PSS", 120, 35)])
    cpu, pss = table([ours, peer]).splitlines()[1:]
    assert cpu.split() == ["CPU", "0.10", "0.50", "<=", "0.12", "met", "5.0"]
    assert pss.split() == ["PSS", "40.00", "120.00", "<=", "35", "MISSED", "3.0"]


def test_bench_json_holds_figures_and_targets(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.json"
    write_json(path, [Column("airflow-edge-agent", "sqlite", [Figure("cpu", "CPU", 0.1, 0.12), Figure("x", "X", 1)])])
    (result,) = json.loads(path.read_text())["results"]
    assert result["figures"] == {"cpu": 0.1, "x": 1}
    assert result["targets"] == {"cpu": 0.12}


def test_a_failed_task_is_described_by_its_error() -> None:
    raw = {"error_detail": [{"exc_type": "RuntimeError", "exc_value": "no"}]}
    assert describe(LogLine(None, "Task failed", grouped=False, raw=raw)) == "Task failed: RuntimeError: no"


def test_waiting_says_what_for_and_what_was_seen() -> None:
    with pytest.raises(WaitTimeoutError, match=r"waited 0 s for rain; last seen: sun"):
        wait_until(lambda: False, seconds=0, what="rain", seen=lambda: "sun")
