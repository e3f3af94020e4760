"""The judge of the fault suite must notice what it is there for."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

from faults.checks import EXPECTED, Findings, _expected_notes, check_agreement, check_tasks
from faults.report import matrix
from faults.run import Outcome
from faults.scene import Scene


def scene(states: dict[str, tuple[str, int]], notes: Counter[str]) -> Scene:
    instances = []
    for label, (state, number) in states.items():
        task, _, index = label.rstrip("]").partition("[")
        found = {"label": label, "task_id": task, "map_index": int(index or -1), "state": state, "try_number": number}
        instances.append(SimpleNamespace(**found))
    api = SimpleNamespace(task_instances=lambda dag_id, run_id: instances)
    world = SimpleNamespace(site=SimpleNamespace(api=api), rows=lambda *_: [])
    made: Any = SimpleNamespace(world=world, run_id="r", notes=lambda: notes)
    return cast("Scene", made)


def judge(states: dict[str, tuple[str, int]], notes: Counter[str]) -> Findings:
    found = Findings()
    check_tasks(scene(states, notes), found)
    return found


def test_the_truth_is_accepted() -> None:
    assert judge(EXPECTED, _expected_notes()).lines() == []


def test_a_wrong_state_or_try_is_lost() -> None:
    assert len(judge(EXPECTED | {"slow": ("failed", 1)}, _expected_notes()).lost) == 1
    assert len(judge(EXPECTED | {"slow": ("success", 2)}, _expected_notes()).lost) == 1
    assert len(judge({k: v for k, v in EXPECTED.items() if k != "slow"}, _expected_notes()).lost) == 1


def test_a_success_without_a_body_is_lost() -> None:
    notes = _expected_notes()
    del notes["quick 3 1 ended"]
    assert judge(EXPECTED, notes).lost == ["never ran: 'quick 3 1 ended'"]


def test_a_body_that_ran_twice_or_too_often_is_doubled() -> None:
    assert judge(EXPECTED, _expected_notes() + Counter(["slow -1 1 began"])).doubled == ["'slow -1 1 began' 2 times"]
    assert len(judge(EXPECTED, _expected_notes() + Counter(["slow -1 2 began"])).doubled) == 1


def test_where_tasks_may_fail_state_and_body_must_agree() -> None:
    notes = _expected_notes()
    found = Findings()
    check_agreement(scene(EXPECTED | {"slow": ("failed", 1)}, notes), found)
    assert found.lost == ["slow is failed, its body ended"]
    del notes["slow -1 1 ended"]
    found = Findings()
    check_agreement(scene(EXPECTED | {"slow": ("failed", 1)}, notes), found)
    assert found.lines() == []


def test_the_matrix_sums_up() -> None:
    bad = Outcome("cut", "http", "sqlite", 2, recovered_seconds=3.0, findings=Findings(lost=["a", "b"], logs=["c"]))
    table = matrix(
        [
            Outcome("cut", "http", "sqlite", 1, recovered_seconds=1.0),
            bad,
            Outcome("clock", "http", "sqlite", 1, skipped="no compiler"),
        ]
    )
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert rows[2] == ["cut", "http", "sqlite", "2", "2", "0", "1", "0", "0", "2.0", "3.0"]
    assert rows[3][3:5] == ["0", "skipped"]
    assert bad.violated
