"""The outage suite finds what is not as it must be. A suite that cannot fail proves nothing."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from outage.clocks import Clocks
from outage.partition import FINISHED_INSIDE, MEMBERS, Trial, Verdict
from outage.report import story, table
from outage.sides import OurSide
from outage.watch import Watch

GOOD = Verdict(
    "ours",
    running_at_cut=MEMBERS,
    finished_inside=len(FINISHED_INSIDE),
    results_seconds=1.0,
    run_state="success",
    worker_end="lived on; ended with 0",
)


def check(verdict: Verdict, fault: str | None = None) -> list[str]:
    trial = object.__new__(Trial)
    trial.side = object.__new__(OurSide)
    trial.verdict = replace(verdict, findings=[])
    trial.watch = cast("Any", SimpleNamespace(fault=fault))
    trial._slack = 1.0
    trial._check()
    return trial.verdict.findings


def test_what_is_good_is_not_found_fault_with() -> None:
    assert check(GOOD) == []


@pytest.mark.parametrize(
    ("flaw", "said"),
    [
        ({"running_at_cut": 7}, "7 of 8 tasks ran"),
        ({"finished_inside": 1}, "1 tasks ended inside"),
        ({"killed_inside": 1}, "killed"),
        ({"failed_inside": 2}, "gave 2 tasks up"),
        ({"lost": 1}, "lost"),
        ({"doubled": 1}, "ran twice"),
        ({"log_holes": 1}, "has holes"),
        ({"run_state": "failed"}, "the run is failed"),
        ({"worker_end": "ended with 70"}, "ended with 70"),
        ({"results_seconds": 5.1}, "5.1 s after the link"),
        ({"results_seconds": None}, "did not come"),
    ],
)
def test_each_flaw_is_found(flaw: dict[str, Any], said: str) -> None:
    (finding,) = check(replace(GOOD, **flaw))
    assert said in finding


def test_a_watcher_that_broke_is_found() -> None:
    assert "ValueError" in check(GOOD, fault="ValueError()")[0]


def watched(folder: Path, notes: str) -> Watch:
    (folder / "notes").write_text(notes)
    watch = Watch(cast("Any", SimpleNamespace(label="x")), "run", folder)
    watch._read_notes()
    watch.instances = cast("Any", dict.fromkeys(range(MEMBERS)))
    return watch


def test_bodies_are_told_apart(tmp_path: Path) -> None:
    pid = os.getpid()
    watch = watched(tmp_path, f"began 1 1 {pid} 10.0\nended 1 1 {pid} 20.0\nbegan 1 2 7 30.0\nbegan 2 1 8 30.0\n")
    assert [body.ended_at for body in watch.bodies_of(1)] == [20.0, None]
    assert watch.overlapping() == 0


def test_two_bodies_at_the_same_time_are_found(tmp_path: Path) -> None:
    pid = os.getpid()
    assert watched(tmp_path, f"began 1 1 {pid} 10.0\nbegan 1 2 7 15.0\nended 1 1 {pid} 20.0\n").overlapping() == 1
    assert watched(tmp_path, f"began 1 1 {pid} 10.0\nbegan 1 2 7 15.0\n").overlapping() == 1


def test_clocks_at_full_length_are_airflows_own_and_short_ones_stay_in_order() -> None:
    full, short = Clocks(1800, 1), Clocks(45, 1 / 40)
    assert full.airflow()["AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT"] == "300"
    assert full.token_life_seconds == 600
    assert full.lease_seconds == 1800
    for clocks in (full, short):
        ours = {name.removeprefix("AIRFLOW__EDGE_AGENT__"): float(value) for name, value in clocks.ours().items()}
        assert ours["HEARTBEAT_INTERVAL"] < ours["AGENT_TIMEOUT"] < clocks.heartbeat_timeout_seconds
        assert clocks.token_life_seconds < clocks.partition_seconds == clocks.lease_seconds
        assert clocks.heartbeat_timeout_seconds < clocks.partition_seconds
    assert Clocks(40, 1, 10).token_life_seconds == 10


def test_the_story_puts_like_changes_together() -> None:
    changes = [
        {"seconds": 37.0 + number, "what": f"task {number}", "before": "running", "after": "failed"}
        for number in range(3)
    ]
    assert story(Verdict("x", changes=changes)) == "  +37 to +39 s       3 x task: running → failed"
    assert "| never " in table([Verdict("x")])
