from __future__ import annotations

import signal

import httpx
import pytest

from airflow_edge_agent.runner.outcome import (
    Answer,
    Observed,
    Report,
    conclude,
    describe_exit,
    judge_callback,
    judge_connection_test,
    judge_task,
    one_line,
)
from airflow_edge_agent.runner.wire import Outcome

STARTED = Answer(200)
REFUSED_TOKEN = Answer(403, "Forbidden")
GONE = Answer(409, "invalid_state: no (state: success)")
BROKEN = Answer(500, "Internal Server Error")
CONNECT = httpx.ConnectError("refused")
READ = httpx.ReadTimeout("timed out")


@pytest.mark.parametrize(
    ("seen", "exit_code", "error", "outcome", "says"),
    [
        (Observed(start=STARTED, delivered="success"), 0, None, Outcome.FINISHED, None),
        (Observed(start=STARTED, delivered="failed"), 0, None, Outcome.FINISHED, None),
        (Observed(start=STARTED, delivered="deferred"), 0, None, Outcome.FINISHED, None),
        (Observed(start=STARTED, delivered="success"), 3, None, Outcome.FINISHED, "exit code 3"),
        (
            Observed(start=STARTED, delivered="failed"),
            42,
            None,
            Outcome.FAILED,
            "code 42; Airflow was told 'failed'",
        ),
        (Observed(start=STARTED, delivered="up_for_retry"), -9, None, Outcome.FAILED, "SIGKILL (out of memory?)"),
        (Observed(start=STARTED, delivered="success"), None, READ, Outcome.FINISHED, None),
        (Observed(start=GONE), None, ValueError("x"), Outcome.SUPERSEDED, "refused the start: 409 invalid_state"),
        (Observed(start=Answer(404)), None, ValueError("x"), Outcome.SUPERSEDED, "404"),
        (Observed(start=Answer(410)), None, ValueError("x"), Outcome.SUPERSEDED, "410"),
        (Observed(start=REFUSED_TOKEN), None, ValueError("x"), Outcome.UNAUTHORIZED, "token: 403 Forbidden"),
        (Observed(start=Answer(401)), None, ValueError("x"), Outcome.UNAUTHORIZED, "401"),
        (Observed(), None, CONNECT, Outcome.NOT_STARTED, "ConnectError: refused"),
        (Observed(), None, ValueError("bad ti"), Outcome.NOT_STARTED, "ValueError: bad ti"),
        (Observed(start=BROKEN), None, ValueError("x"), Outcome.NOT_STARTED, "500"),
        (Observed(start_unanswered=True), None, READ, Outcome.UNDELIVERED, "no answer came"),
        (Observed(start=STARTED), 0, None, Outcome.UNDELIVERED, "no answer"),
        (Observed(start=STARTED, state_refused=BROKEN), 0, None, Outcome.UNDELIVERED, "500 Internal Server Error"),
        (Observed(start=STARTED, state_refused=REFUSED_TOKEN), 0, None, Outcome.UNDELIVERED, "403"),
        (Observed(start=STARTED), None, CONNECT, Outcome.UNDELIVERED, "ConnectError"),
        (Observed(start=STARTED), None, RuntimeError("boom"), Outcome.CRASHED, "RuntimeError: boom"),
        (Observed(start=STARTED, heartbeat_refused=GONE), -15, None, Outcome.SUPERSEDED, "a heartbeat with 409"),
        (Observed(start=STARTED, state_refused=GONE), 0, None, Outcome.SUPERSEDED, "the task's state with 409"),
        (Observed(start=STARTED, heartbeat_refused=BROKEN), 0, None, Outcome.UNDELIVERED, "no answer"),
    ],
)
def test_how_a_task_ended(
    seen: Observed, exit_code: int | None, error: Exception | None, outcome: Outcome, says: str | None
) -> None:
    report = judge_task(seen, exit_code=exit_code, error=error)
    assert report.outcome is outcome
    if says is None:
        assert report.detail is None
    else:
        assert says in (report.detail or "")
        assert "\n" not in (report.detail or "")


def test_finished_always_means_that_airflow_knows() -> None:
    for start in (None, STARTED, GONE, REFUSED_TOKEN, BROKEN):
        for error in (None, CONNECT, ValueError()):
            for code in (None, 0, 1, -9):
                report = judge_task(Observed(start=start), exit_code=code, error=error)
                assert report.outcome is not Outcome.FINISHED
                assert report.detail


def test_a_detail_holds_no_token() -> None:
    error = RuntimeError("header 'Bearer abc.def'\n and more")
    report = judge_task(Observed(start=STARTED, secrets={"abc.def"}), exit_code=None, error=error)
    assert report.detail == "the supervisor failed: RuntimeError: header 'Bearer ***' and more"


@pytest.mark.parametrize(
    ("exit_code", "error", "outcome", "code"),
    [
        (0, None, Outcome.FINISHED, 0),
        (1, None, Outcome.FAILED, 1),
        (None, RuntimeError("Callback subprocess exited with code 1"), Outcome.FAILED, 1),
        (None, RuntimeError("Callback subprocess exited with code -9"), Outcome.FAILED, -9),
        (None, RuntimeError("Callback subprocess exited with code Negsignal.SIGKILL (-9)"), Outcome.FAILED, -9),
        (None, ValueError("no such field"), Outcome.NOT_STARTED, None),
    ],
)
def test_how_a_callback_ended(
    exit_code: int | None, error: Exception | None, outcome: Outcome, code: int | None
) -> None:
    report = judge_callback(exit_code=exit_code, error=error, secrets=set())
    assert (report.outcome, report.exit_code) == (outcome, code)


def test_how_a_connection_test_ended() -> None:
    assert judge_connection_test(exit_code=0, error=None, secrets=set()) == Report(Outcome.FINISHED, 0)
    assert judge_connection_test(exit_code=3, error=None, secrets=set()).outcome is Outcome.FAILED
    report = judge_connection_test(exit_code=None, error=ValueError("no entry for the-token"), secrets={"the-token"})
    assert (report.outcome, report.exit_code) == (Outcome.FAILED, None)
    assert report.detail == "the connection test could not report: ValueError: no entry for ***"


FINISHED = Report(Outcome.FINISHED, 0, None, "success")
TERM, KILL = int(signal.SIGTERM), int(signal.SIGKILL)


@pytest.mark.parametrize(
    ("report", "status", "asked", "outcome"),
    [
        (FINISHED, 0, None, Outcome.FINISHED),
        (None, -9, None, Outcome.CRASHED),
        (None, 1, None, Outcome.CRASHED),
        (None, -9, KILL, Outcome.KILLED),
        (None, -15, TERM, Outcome.KILLED),
        # It came to its own end before the signal had an effect.
        (FINISHED, 0, TERM, Outcome.FINISHED),
        (FINISHED, -9, KILL, Outcome.FINISHED),
        (Report(Outcome.FINISHED, 0, None, "failed"), 0, TERM, Outcome.KILLED),
        (Report(Outcome.FAILED, -15, "x", "failed"), 0, TERM, Outcome.KILLED),
        (Report(Outcome.UNDELIVERED, -15, "x"), 0, TERM, Outcome.KILLED),
        # Must not be offered again: it was cancelled.
        (Report(Outcome.NOT_STARTED, None, "x"), 0, TERM, Outcome.KILLED),
        (Report(Outcome.UNAUTHORIZED, None, "x"), 0, TERM, Outcome.KILLED),
        (Report(Outcome.SUPERSEDED, None, "x"), 0, TERM, Outcome.SUPERSEDED),
    ],
)
def test_how_a_job_ended(report: Report | None, status: int, asked: int | None, outcome: Outcome) -> None:
    result = conclude(report, status=status, asked=asked)
    assert result.outcome is outcome
    if outcome is Outcome.KILLED:
        assert signal.Signals(asked or 0).name in (result.detail or "")


def test_exits_in_words() -> None:
    assert describe_exit(3) == "ended with exit code 3"
    assert describe_exit(-15) == "was ended by SIGTERM"
    assert describe_exit(-9) == "was ended by SIGKILL (out of memory?)"
    assert describe_exit(-200) == "was ended by signal 200"


def test_a_line_is_bounded() -> None:
    assert len(one_line("x" * 10_000)) == 2_000
