"""Why a job is not wanted any more, and whether the runtime fits."""

from __future__ import annotations

import pytest

from airflow_edge_server.domain.tasks import OVERTIME_GRACE_SECONDS, TaskView, why_ended
from airflow_edge_server.domain.versions import version_warning


@pytest.mark.parametrize("state", ["queued", "running"])
def test_a_task_under_way_is_wanted(state: str) -> None:
    assert why_ended(TaskView(state), started=True) is None


@pytest.mark.parametrize(
    "state", ["success", "deferred", "up_for_reschedule", "up_for_retry", "scheduled", None, "new"]
)
def test_what_is_reported_while_the_process_runs_gets_its_overtime(state: str | None) -> None:
    end = why_ended(TaskView(state), started=True)
    assert end is not None
    assert end.grace_seconds == OVERTIME_GRACE_SECONDS > 20


@pytest.mark.parametrize("state", ["failed", "skipped", "removed", "upstream_failed"])
def test_what_is_reported_after_the_process_is_soon_believed(state: str) -> None:
    end = why_ended(TaskView(state), started=True)
    assert end is not None
    assert end.grace_seconds < 1


def test_another_version_is_a_warning() -> None:
    assert version_warning({"airflow": "3.3.2"}, "3.3.2") is None
    assert version_warning({}, "3.3.2") is None
    assert version_warning({"airflow": None}, "3.3.2") is None
    assert version_warning({"airflow": "3.3.1"}, "3.3.2") == (
        "the task runtime has Airflow 3.3.1, the server 3.3.2: another patch"
    )
    assert "another minor version" in str(version_warning({"airflow": "3.2.2"}, "3.3.2"))
    assert "Task SDK 1.2.2" in str(version_warning({"task_sdk": "1.2.2"}, "3.3.2")), "no runner has said more yet"
