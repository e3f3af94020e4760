from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Literal

import pytest

from airflow_edge_agent.protocol.frames import HeldJob
from airflow_edge_agent.protocol.jobs import HELD_STATES, JobEvent, JobState, Outcome
from airflow_edge_server.domain.jobs import MAX_OFFERS, event_of_absence, event_of_result, is_legal
from airflow_edge_server.domain.reconcile import SETTLE_SECONDS, ServerJob, Step, reconcile

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
    ended: Outcome | None = None,
    outcome: Outcome | None = None,
    is_task: bool = True,
    held_seconds: float = 0,
) -> list[Step]:
    listed = [] if phase is None else [HeldJob(job_id=JOB, fence=held_fence, phase=phase, outcome=ended)]
    job = ServerJob(JOB, S.QUEUED, fence, owner, cancel, detail, outcome, is_task=is_task, held_seconds=held_seconds)
    known = [] if state is None else [replace(job, state=state)]
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


AGAIN = "the job has been offered again since"


@pytest.mark.parametrize(("state", "fence"), [(S.QUEUED, 1), (S.QUEUED, 2), (S.OFFERED, 2)])
@pytest.mark.parametrize("is_task", [True, False])
def test_a_job_given_up_too_early_stays_with_its_agent(state: JobState, fence: int, is_task: bool) -> None:  # noqa: FBT001  parameter
    owner = None if state is S.QUEUED else "other"
    for phase, events in (("accepted", ()), ("running", (E.START,)), ("finished", ())):
        (step,) = steps(phase, state, fence=fence, owner=owner, is_task=is_task)  # type: ignore[arg-type]  # a literal
        assert step == Step(
            JOB, fence + 1, events=(E.ADOPT, *events), acknowledge=True, held_fence=1, tell_log_offset=True
        )


def test_a_newer_offer_to_the_same_agent_is_merged_with_the_older_one() -> None:
    (step,) = steps("accepted", S.OFFERED, fence=2)
    assert step == Step(JOB, 3, events=(E.ADOPT,), acknowledge=True, held_fence=1, tell_log_offset=True)


@pytest.mark.parametrize("state", [S.ACCEPTED, S.RUNNING])
def test_an_agent_that_has_not_heard_of_its_new_fence_is_told_again(state: JobState) -> None:
    (step,) = steps("running", state, fence=3)
    events = (E.START,) if state is S.ACCEPTED else ()
    assert step == Step(JOB, 3, events=events, acknowledge=True, held_fence=1, tell_log_offset=True)


@pytest.mark.parametrize("state", [S.ACCEPTED, S.RUNNING])
@pytest.mark.parametrize("phase", ["running", "finished"])
def test_while_it_is_uncertain_who_began_nobody_is_stopped(phase: Phase, state: JobState) -> None:
    assert steps(phase, state, fence=2, owner="other", held_seconds=SETTLE_SECONDS - 1) == [Step(JOB, 1, wait="other")]


@pytest.mark.parametrize(
    ("phase", "state", "adopted"),
    [
        ("running", S.ACCEPTED, True),  # whoever has taken it does not begin with it
        ("running", S.RUNNING, False),  # Airflow has let the other one begin
        ("finished", S.ACCEPTED, False),
        ("finished", S.RUNNING, False),
    ],
)
def test_after_a_while_it_is_decided(phase: Phase, state: JobState, adopted: bool) -> None:  # noqa: FBT001  parameter
    (step,) = steps(phase, state, fence=2, owner="other", held_seconds=SETTLE_SECONDS)
    expected = Step(JOB, 3, events=(E.ADOPT, E.START), acknowledge=True, held_fence=1, tell_log_offset=True)
    assert step == (expected if adopted else Step(JOB, 1, cancel=AGAIN))


@pytest.mark.parametrize("state", [S.ACCEPTED, S.RUNNING])
def test_one_that_has_not_begun_makes_way(state: JobState) -> None:
    assert steps("accepted", state, fence=2, owner="other") == [Step(JOB, 1, cancel=AGAIN)]
    assert steps("running", state, fence=2, owner="other", is_task=False) == [Step(JOB, 1, cancel=AGAIN)]


@pytest.mark.parametrize("ended", [O.NOT_STARTED, O.UNAUTHORIZED, O.SUPERSEDED])
@pytest.mark.parametrize("state", [S.QUEUED, S.OFFERED, S.ACCEPTED, S.RUNNING, S.FINISHED])
def test_an_end_without_beginning_is_no_claim(state: JobState, ended: Outcome) -> None:
    (step,) = steps("finished", state, fence=2, owner="other", ended=ended, outcome=O.SUPERSEDED)
    assert step == Step(JOB, 1, cancel=AGAIN)


@pytest.mark.parametrize("phase", ["running", "finished"])
def test_who_was_refused_had_a_rival_that_runs(phase: Phase) -> None:
    (step,) = steps(phase, S.FINISHED, fence=2, owner="other", outcome=O.SUPERSEDED)
    events = (E.ADOPT, E.START) if phase == "running" else (E.ADOPT,)
    assert step == Step(JOB, 3, events=events, acknowledge=True, held_fence=1, tell_log_offset=True)


@pytest.mark.parametrize("outcome", [o for o in O if o is not O.SUPERSEDED])
def test_any_other_end_is_final(outcome: Outcome) -> None:
    assert steps("running", S.FINISHED, fence=2, owner="other", outcome=outcome) == [Step(JOB, 1, cancel=AGAIN)]


@pytest.mark.parametrize("state", [S.QUEUED, S.OFFERED, S.ACCEPTED, S.RUNNING])
def test_a_cancelled_job_is_claimed_by_nobody(state: JobState) -> None:
    (step,) = steps("running", state, fence=2, owner="other", cancel="cleared by a user")
    assert step == Step(JOB, 1, cancel="cleared by a user")


@pytest.mark.parametrize("state", [S.OFFERED, S.ACCEPTED, S.RUNNING, S.FINISHED])
def test_the_job_of_another_agent_is_dropped(state: JobState) -> None:
    assert steps("running", state, owner="other") == [Step(JOB, 1, cancel="another agent has it")]


def test_a_fence_from_the_future_is_dropped() -> None:
    assert steps("running", S.QUEUED, fence=1, held_fence=2, owner=None) == [Step(JOB, 2, cancel=AGAIN)]


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
