"""From what was seen of a job to its outcome. Pure: no I/O, no clock, no Airflow."""

from __future__ import annotations

import re
import signal
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from .wire import MAX_DETAIL_CHARS, Outcome

_GONE = frozenset({404, 409, 410})
"""Answers by which Airflow says that the task instance is no business of this job (any more)."""

_NOT_ALLOWED = frozenset({401, 403})

_FAILURE_STATES = frozenset({"failed", "up_for_retry"})
"""States that say the workload did not get where it wanted."""


class Terminated(BaseException):
    """The job is to end before, or instead of, going on. No handler of ordinary errors may swallow it."""


@dataclass(slots=True)
class Answer:
    """What the Execution API answered to one call."""

    status: int
    text: str = ""

    @property
    def good(self) -> bool:
        """Whether the call did what it asked for."""
        return 200 <= self.status < 300  # noqa: PLR2004 -- the range of HTTP's success codes

    def __str__(self) -> str:
        return f"{self.status} {self.text}".strip()


@dataclass(slots=True)
class Observed:
    """What passed between a supervisor and the Execution API, as far as the outcome depends on it."""

    start: Answer | None = None
    """Last answer to the call that moves the task instance to running."""
    start_unanswered: bool = False
    """Such a call went out and no answer came: nobody here knows whether it took effect."""
    delivered: str | None = None
    """State that Airflow has taken from us after the start."""
    state_refused: Answer | None = None
    """Last bad answer to a call that delivers a state."""
    heartbeat_refused: Answer | None = None
    """Answer to a heartbeat by which Airflow ended the task."""
    secrets: set[str] = field(default_factory=set, repr=False)
    """Texts that must not get into a detail."""

    @property
    def started(self) -> bool:
        """Whether Airflow has agreed to the start."""
        return self.start is not None and self.start.good


@dataclass(frozen=True, slots=True)
class Report:
    """What the forked child tells the runner when it is done."""

    outcome: Outcome
    exit_code: int | None = None
    detail: str | None = None
    delivered: str | None = None


def judge_task(seen: Observed, *, exit_code: int | None, error: BaseException | None) -> Report:
    """Decide how a task ended.

    :param exit_code: what the SDK's supervisor returned; ``None`` when it raised.
    :param error: what it raised.
    """
    if not seen.started and seen.delivered is None:
        return Report(*_judge_start(seen, error))
    if seen.delivered is not None:
        detail = None
        outcome = Outcome.FINISHED
        if exit_code:
            detail = f"the task's process {describe_exit(exit_code)}; Airflow was told '{seen.delivered}'"
            if seen.delivered in _FAILURE_STATES:
                outcome = Outcome.FAILED
        return Report(outcome, exit_code, detail, seen.delivered)
    for call, answer in (("a heartbeat", seen.heartbeat_refused), ("the task's state", seen.state_refused)):
        if answer is not None and answer.status in _GONE:
            return Report(Outcome.SUPERSEDED, exit_code, f"Airflow ended the task: it answered {call} with {answer}")
    if error is not None and seen.state_refused is None and not _is_connection(error):
        return Report(Outcome.CRASHED, exit_code, f"the supervisor failed: {describe(error, seen.secrets)}")
    reason = str(seen.state_refused) if seen.state_refused is not None else describe(error, seen.secrets)
    return Report(
        Outcome.UNDELIVERED, exit_code, f"the task's state could not be delivered to Airflow: {reason or 'no answer'}"
    )


def _judge_start(seen: Observed, error: BaseException | None) -> tuple[Outcome, None, str]:
    answer = seen.start
    if answer is not None and answer.status in _GONE:
        return Outcome.SUPERSEDED, None, f"Airflow refused the start: {answer}"
    if answer is not None and answer.status in _NOT_ALLOWED:
        return Outcome.UNAUTHORIZED, None, f"Airflow refused the job's token: {answer}"
    reason = str(answer) if answer is not None else describe(error, seen.secrets)
    if seen.start_unanswered:
        return (
            Outcome.UNDELIVERED,
            None,
            f"the start was sent to Airflow, and no answer came: {reason or 'unknown reason'}",
        )
    return Outcome.NOT_STARTED, None, f"could not be started: {reason or 'the supervisor did not ask for it'}"


def judge_callback(*, exit_code: int | None, error: BaseException | None, secrets: AbstractSet[str]) -> Report:
    """Decide how a callback ended. Airflow learns of it through the executor, so there is nothing to deliver."""
    if error is None and exit_code == 0:
        return Report(Outcome.FINISHED, exit_code)
    if exit_code is None and error is not None:
        # The SDK tells the code of a callback's process only in the text of its error.
        match = re.search(r"exited with code (?:.*?)(-?\d+)", str(error))
        exit_code = int(match.group(1)) if match else None
    if exit_code is None:
        return Report(Outcome.NOT_STARTED, None, f"could not be started: {describe(error, secrets)}")
    return Report(Outcome.FAILED, exit_code, f"the callback's process {describe_exit(exit_code)}; its log has more")


def judge_connection_test(*, exit_code: int | None, error: BaseException | None, secrets: AbstractSet[str]) -> Report:
    """Decide how a connection test ended: whether its verdict reached Airflow, not whether the connection is good."""
    if error is not None:
        return Report(Outcome.FAILED, None, f"the connection test could not report: {describe(error, secrets)}")
    if exit_code:
        return Report(Outcome.FAILED, exit_code, f"the connection test {describe_exit(exit_code)}")
    return Report(Outcome.FINISHED, exit_code)


AS_ASKED = "as asked"


def conclude(report: Report | None, *, status: int, asked: int | None, why: str = AS_ASKED) -> Report:
    """Decide how a job ended, from its report and the end of the process that should have sent one.

    :param status: exit code of that process, negative for a signal.
    :param asked: the last signal the runner was asked to send to the job.
    :param why: why it was sent.
    """
    if asked is None:
        if report is not None:
            return report
        return Report(Outcome.CRASHED, None, f"the supervising process {describe_exit(status)}")
    name = signal.Signals(asked).name
    if report is None:
        return Report(Outcome.KILLED, None, f"ended by {name}, {why}")
    ran_to_its_end = report.outcome is Outcome.FINISHED and report.delivered not in _FAILURE_STATES
    if ran_to_its_end or report.outcome is Outcome.SUPERSEDED:
        return report
    told = f"; Airflow was told '{report.delivered}'" if report.delivered else ""
    return Report(Outcome.KILLED, report.exit_code, f"ended by {name}, {why}{told}", report.delivered)


def describe_exit(code: int) -> str:
    """Say in words how a process ended."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"was ended by {name}{hint}"


def describe(error: BaseException | None, secrets: AbstractSet[str] = frozenset()) -> str:
    """Say in one line what an exception is, without secrets."""
    if error is None:
        return ""
    text = f"{type(error).__name__}: {error}"
    return one_line(text, secrets).removesuffix(":")


def one_line(text: str, secrets: AbstractSet[str] = frozenset()) -> str:
    """Reduce a text to one line of bounded length without secrets."""
    for secret in secrets:
        text = text.replace(secret, "***")
    text = " ".join(text.split())
    return text if len(text) <= MAX_DETAIL_CHARS else text[: MAX_DETAIL_CHARS - 3] + "..."


def _is_connection(error: BaseException) -> bool:
    return any(kind.__module__.partition(".")[0] == "httpx" for kind in type(error).__mro__)
