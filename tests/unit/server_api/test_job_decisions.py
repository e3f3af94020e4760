from __future__ import annotations

import uuid
from typing import Literal

import pytest

from airflow_edge_agent.protocol.frames import HeldJob
from airflow_edge_agent.protocol.jobs import HELD_STATES, JobEvent, JobState, Outcome
from airflow_edge_server.domain.jobs import MAX_OFFERS, event_of_absence, event_of_result, is_legal
from airflow_edge_server.domain.reconcile import ServerJob, Step, reconcile

S, E, O = JobState, JobEvent, Outcome  # noqa: E741  short names make the tables readable
JOB = str(uuid.UUID(int=1))


@pytest.mark.parametrize("outcome", [O.NOT_STARTED, O.UNAUTHORIZED])
def test_a_job_of_which_nothing_ran_goes_back(outcome: Outcome) -> None:
    assert event_of_result(S.ACCEPTED, outcome, offers=1, cancelled=False) is E.RETURN
    assert event_of_result(S.OFFERED, outcome, offers=1, cancelled=False) is E.RETURN


def test_a_running_job_goes_back_only_if_the_table_allows_it() -> None:
    expected = E.RETURN if is_legal(S.RUNNING, E.RETURN) else E.FINISH
    assert event_of_result(S.RUNNING, O.UNAUTHORIZED, offers=1, cancelled=False) is expected


@pytest.mark.parametrize("state", [S.ACCEPTED, S.RUNNING])
def test_a_cancelled_or_much_offered_job_does_not_go_back(state: JobState) -> None:
    assert event_of_result(state, O.NOT_STARTED, offers=1, cancelled=True) is E.FINISH
    assert event_of_result(state, O.NOT_STARTED, offers=MAX_OFFERS, cancelled=False) is E.FINISH


@pytest.mark.parametrize("state", [S.ACCEPTED, S.RUNNING, S.FINISHED])
@pytest.mark.parametrize("outcome", [o for o in O if o not in {O.NOT_STARTED, O.UNAUTHORIZED}])
def test_any_other_result_finishes(state: JobState, outcome: Outcome) -> None:
    assert event_of_result(state, outcome, offers=1, cancelled=False) is E.FINISH


def test_a_result_of_an_offer_that_was_never_accepted() -> None:
    assert event_of_result(S.OFFERED, O.FINISHED, offers=1, cancelled=False) is None
    assert event_of_result(S.OFFERED, O.KILLED, offers=1, cancelled=True) is E.END
    assert event_of_result(S.OFFERED, O.NOT_STARTED, offers=MAX_OFFERS, cancelled=False) is E.END


def test_a_result_of_a_queued_job_means_nothing() -> None:
    assert event_of_result(S.QUEUED, O.FINISHED, offers=1, cancelled=False) is None


def test_absent_jobs() -> None:
    assert event_of_absence(S.OFFERED, offers=MAX_OFFERS, cancelled=False) is E.RETURN
    assert event_of_absence(S.ACCEPTED, offers=MAX_OFFERS - 1, cancelled=False) is E.RETURN
    assert event_of_absence(S.ACCEPTED, offers=MAX_OFFERS, cancelled=False) is E.END
    assert event_of_absence(S.OFFERED, offers=1, cancelled=True) is E.END
    assert event_of_absence(S.RUNNING, offers=1, cancelled=False) is E.END
    for state in set(S) - HELD_STATES:
        with pytest.raises(ValueError, match="held by no agent"):
            event_of_absence(state, offers=1, cancelled=False)


Phase = Literal["accepted", "running", "finished"]


def steps(
    phase: Phase | None,
    state: JobState | None,
    *,
    fence: int = 1,
    held_fence: int = 1,
    owner: str | None = "me",
    cancel: str | None = None,
    detail: str | None = None,
    rebooted: bool = False,
) -> list[Step]:
    listed = [] if phase is None else [HeldJob(job_id=JOB, fence=held_fence, phase=phase)]
    known = [] if state is None else [ServerJob(JOB, state, fence, owner, cancel, detail)]
    return reconcile("me", listed, known, rebooted=rebooted)


@pytest.mark.parametrize(
    ("phase", "state", "events"),
    [
        ("accepted", S.OFFERED, (E.ACCEPT,)),
        ("accepted", S.ACCEPTED, ()),
        ("accepted", S.RUNNING, ()),
        ("running", S.OFFERED, (E.ACCEPT, E.START)),
        ("running", S.ACCEPTED, (E.START,)),
        ("running", S.RUNNING, ()),
    ],
)
def test_a_job_both_sides_know_is_acknowledged(phase: Phase, state: JobState, events: tuple[JobEvent, ...]) -> None:
    assert steps(phase, state) == [Step(JOB, 1, events=events, acknowledge=True, tell_log_offset=True)]


@pytest.mark.parametrize("state", [S.ACCEPTED, S.RUNNING, S.FINISHED])
def test_a_finished_job_waits_for_its_result(state: JobState) -> None:
    assert steps("finished", state, cancel="stop") == [Step(JOB, 1, tell_log_offset=True)]


def test_a_finished_job_whose_accept_was_lost_is_accepted() -> None:
    assert steps("finished", S.OFFERED) == [Step(JOB, 1, events=(E.ACCEPT,), tell_log_offset=True)]


def test_an_unknown_job_is_dropped() -> None:
    (step,) = steps("running", None)
    assert step.cancel == "the server does not know this job"


def test_a_job_of_another_fence_is_dropped() -> None:
    (step,) = steps("running", S.QUEUED, fence=2, owner=None)
    assert step == Step(JOB, 1, cancel="the job has been offered again since")


def test_a_newer_offer_to_the_same_agent_goes_back_when_it_holds_the_older() -> None:
    first, second = steps("accepted", S.OFFERED, fence=2)
    assert first == Step(JOB, 1, cancel="the job has been offered again since")
    assert second == Step(JOB, 2, events=(E.RETURN,))


def test_the_job_of_another_agent_is_dropped() -> None:
    (step,) = steps("running", S.RUNNING, owner="other")
    assert step == Step(JOB, 1, cancel="another agent has it")


def test_a_job_whose_lease_ended_is_dropped() -> None:
    (step,) = steps("accepted", S.QUEUED, owner=None)
    assert step.cancel == "the lease ended before the job was accepted"


@pytest.mark.parametrize("detail", [None, "agent out of contact"])
def test_a_job_the_server_ended_is_dropped(detail: str | None) -> None:
    (step,) = steps("running", S.FINISHED, detail=detail)
    assert step == Step(JOB, 1, cancel=detail or "the server has ended this job")


def test_a_cancelled_job_is_not_acknowledged() -> None:
    (step,) = steps("running", S.RUNNING, cancel="cleared by a user")
    assert step == Step(JOB, 1, cancel="cleared by a user")


def test_an_offer_the_agent_does_not_list_goes_back() -> None:
    assert steps(None, S.OFFERED) == [Step(JOB, 1, events=(E.RETURN,))]


def test_an_accepted_job_the_agent_does_not_list_goes_back_until_offered_too_often() -> None:
    assert steps(None, S.ACCEPTED, fence=4) == [Step(JOB, 4, events=(E.RETURN,))]
    (step,) = steps(None, S.ACCEPTED, fence=5)
    assert (step.events, step.outcome, step.detail) == ((E.END,), O.LOST, "offered 5 times and never started")


@pytest.mark.parametrize(("rebooted", "detail"), [(True, "host rebooted"), (False, "agent restarted without it")])
def test_a_running_job_the_agent_does_not_list_is_lost(rebooted: bool, detail: str) -> None:  # noqa: FBT001  parameter
    assert steps(None, S.RUNNING, rebooted=rebooted) == [Step(JOB, 1, events=(E.END,), outcome=O.LOST, detail=detail)]


def test_a_cancelled_job_the_agent_does_not_list_is_revoked() -> None:
    assert steps(None, S.ACCEPTED, cancel="no") == [Step(JOB, 1, events=(E.END,), outcome=O.REVOKED, detail="no")]


@pytest.mark.parametrize("state", [S.QUEUED, S.FINISHED])
def test_a_job_nobody_holds_is_left_alone(state: JobState) -> None:
    assert steps(None, state) == []
