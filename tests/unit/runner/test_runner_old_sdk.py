"""What a Task SDK must be able to do so that its tasks can be relayed. All that are supported can."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_edge_agent.runner.sdk import cannot_relay
from airflow_edge_agent.runner.wire import Outcome, Run


def takes_a_client(*, token: str, server: str, client: Any = None) -> int:
    raise AssertionError


def takes_none(*, token: str, server: str) -> int:
    raise AssertionError


def job(relay: str | None) -> Run:
    return Run(job_id="1", kind="task", workload={}, token="", server="http://edge-agent/execution/", relay=relay)


def test_an_sdk_that_takes_no_client_starts_no_relayed_task(capsys: pytest.CaptureFixture[str]) -> None:
    report = cannot_relay(job("/run/execution.sock"), takes_none)
    assert report is not None
    assert report.outcome is Outcome.NOT_STARTED
    assert 'set execution_api = "direct"' in str(report.detail)
    assert str(report.detail) in capsys.readouterr().err


def test_all_others_do() -> None:
    assert cannot_relay(job("/run/execution.sock"), takes_a_client) is None
    assert cannot_relay(job(None), takes_none) is None
