from __future__ import annotations

import itertools

import pytest

from airflow_edge_agent.protocol.jobs import Outcome
from airflow_edge_server.verdicts import Verdict, judge_callback, judge_task, reason

STATES = [
    None, "scheduled", "queued", "running", "restarting", "success", "failed", "skipped", "deferred", "up_for_retry",
    "up_for_reschedule", "removed", "upstream_failed",
]  # fmt: skip


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("state", STATES)
def test_an_old_dispatch_never_causes_an_event(outcome: Outcome, state: str | None) -> None:
    for same_try, newest in ((True, False), (False, True), (False, False)):
        verdict = judge_task(outcome, ti_state=state, same_try=same_try, newest=newest, waited=True)
        assert verdict is Verdict.RELEASE


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("state", [s for s in STATES if s not in {"queued", "running", "restarting"}])
def test_what_airflow_knows_needs_no_event(outcome: Outcome, state: str | None) -> None:
    assert judge_task(outcome, ti_state=state, same_try=True, newest=True, waited=False) is Verdict.RELEASE


@pytest.mark.parametrize("outcome", sorted(set(Outcome) - {Outcome.FINISHED, Outcome.SUPERSEDED}))
@pytest.mark.parametrize("state", ["queued", "running"])
def test_an_end_of_which_airflow_knows_nothing_is_a_failure(outcome: Outcome, state: str) -> None:
    assert judge_task(outcome, ti_state=state, same_try=True, newest=True, waited=False) is Verdict.FAIL


@pytest.mark.parametrize(
    ("outcome", "state", "waited", "verdict"),
    [
        (Outcome.FINISHED, "running", False, Verdict.WAIT),
        (Outcome.FINISHED, "queued", False, Verdict.WAIT),
        (Outcome.FINISHED, "running", True, Verdict.FAIL),
        (Outcome.FINISHED, "queued", True, Verdict.FAIL),
        (Outcome.SUPERSEDED, "running", False, Verdict.WAIT),
        (Outcome.SUPERSEDED, "running", True, Verdict.RELEASE),
        (Outcome.SUPERSEDED, "queued", True, Verdict.FAIL),
    ],
)
def test_states_that_may_lag_behind(outcome: Outcome, state: str, waited: bool, verdict: Verdict) -> None:  # noqa: FBT001
    assert judge_task(outcome, ti_state=state, same_try=True, newest=True, waited=waited) is verdict


@pytest.mark.parametrize("outcome", Outcome)
def test_a_cleared_task_is_started_anew_whatever_ended_it(outcome: Outcome) -> None:
    assert judge_task(outcome, ti_state="restarting", same_try=True, newest=True, waited=False) is Verdict.SUCCEED


def test_success_is_never_reported_for_a_task_that_was_not_cleared() -> None:
    for outcome, state, waited in itertools.product(Outcome, STATES, (True, False)):
        if state != "restarting":
            assert judge_task(outcome, ti_state=state, same_try=True, newest=True, waited=waited) is not Verdict.SUCCEED


def test_callbacks() -> None:
    assert judge_callback("finished", 0) is Verdict.SUCCEED
    assert judge_callback("finished", None) is Verdict.SUCCEED
    assert judge_callback("finished", 1) is Verdict.FAIL
    assert judge_callback("lost", None) is Verdict.FAIL


def test_reasons_name_agent_outcome_and_detail() -> None:
    assert reason("a1", "killed", -9, "drain deadline") == "edge agent a1: killed with exit code -9: drain deadline"
    assert reason(None, "revoked", None, None) == "edge agent: revoked"
    assert reason("a1", "finished", 0, None) == "edge agent a1: ended without delivering its state"
