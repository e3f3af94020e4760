"""How a job ended whose final state was taken by the agent, once Airflow has spoken."""

from __future__ import annotations

from dataclasses import replace

from airflow_edge_agent.core.events import FinalSettled, JobEnded
from airflow_edge_agent.protocol.jobs import Outcome

FAILURE_STATES = frozenset({"failed", "up_for_retry"})
"""Final states that say the workload did not get where it wanted."""

_UNKNOWING = frozenset({Outcome.LOST, Outcome.CRASHED, Outcome.KILLED, Outcome.UNDELIVERED})
"""Outcomes of those who saw the job end and did not know that Airflow would learn its state."""

_DETAIL_CHARS = 2_000


def judge_end(ended: JobEnded, settled: FinalSettled | None) -> JobEnded:
    """Correct how a job ended by what became of its final state; ``None``: nothing has, so far."""
    if settled is None:
        return ended
    if settled.refusal is not None:
        outcome = Outcome.SUPERSEDED if settled.overruled else Outcome.UNDELIVERED
        return replace(ended, outcome=outcome, detail=settled.refusal[:_DETAIL_CHARS], unsaid=False)
    if ended.outcome not in _UNKNOWING or settled.state in FAILURE_STATES:
        failed = ended.outcome is Outcome.UNDELIVERED
        return replace(ended, outcome=Outcome.FAILED if failed else ended.outcome, unsaid=False)
    told = f"Airflow was told '{settled.state}'"
    detail = f"{ended.detail}; {told}" if ended.detail else told
    return replace(ended, outcome=Outcome.FINISHED, detail=detail[:_DETAIL_CHARS], unsaid=False)
