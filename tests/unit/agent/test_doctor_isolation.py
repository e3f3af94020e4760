"""What ``edgectl doctor`` says of what keeps jobs apart, from the runner's own words."""

from __future__ import annotations

from typing import Any, cast

import pytest

from airflow_edge_agent.configuration import Loaded
from airflow_edge_agent.ctl.checks.host import cgroups
from airflow_edge_agent.ctl.doctor import Check, Scene


def look(isolation: dict[str, Any]) -> list[Check]:
    return list(cgroups(Scene(cast("Loaded", None), facts={"status": {"isolation": isolation}})))


def test_all_is_there() -> None:
    (check,) = look({"cgroups": True, "missing": [], "own_supervisor": None})
    assert check.verdict == "ok"


@pytest.mark.parametrize("some", [True, False])
def test_what_is_missing_is_named_with_a_remedy(some: bool) -> None:  # noqa: FBT001 -- a parameter of the test
    (check,) = look({"cgroups": some, "missing": ["io: not delegated", "cpu: busy"], "own_supervisor": None})
    assert check.verdict == "warn"
    assert "io: not delegated; cpu: busy" in check.found
    assert "Delegate=yes" in str(check.remedy)


def test_a_supervisor_for_each_task_costs() -> None:
    _, check = look({"cgroups": True, "missing": [], "own_supervisor": "the Task SDK 1.1 has no such function"})
    assert (check.name, check.verdict) == ("supervision", "warn")
    assert "1.1" in check.found
