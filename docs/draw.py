"""Draws the state diagrams in states.md from the tables in the code. ``python docs/draw.py`` rewrites the file."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from airflow_edge_agent.core.jobs import PHASES
from airflow_edge_agent.protocol.jobs import JOB_TRANSITIONS, JobEvent, JobState, Outcome
from airflow_edge_agent.protocol.states import AGENT_TRANSITIONS, AgentEvent, AgentState

PAGE = Path(__file__).parent / "states.md"

INTRODUCTION = """\
# States

This page is drawn from the tables in the code (`python docs/draw.py`); a test compares the two.

## An agent

The names are Airflow's own for edge workers. The agent decides its state and tells it; the server decides only for an
agent that it cannot hear.

"""

AGENT_NOTES = """
Maintenance can be asked for at either end: `airflow edge-agents maintenance on NAME` or `edgectl maintenance on`. Both
show the same: since when, who asked and why. It survives every way of going away: the agent keeps it on its disk, the
server shows such an agent as *offline maintenance*, and it comes back in maintenance. Either end may end it, whoever
asked. Of two decisions that cross, the later one counts, by the clocks of those who made them; the server says which,
and until it has said so the agent goes by its own. `edgectl maintenance on --for 2h` ends by itself, by wall time, also
when the agent was off at that moment: then it ends with the next start.

A drain (`edgectl drain`) is no state of its own: the agent stays *idle* or *running* and reports a problem, so it is
offered nothing. It ends with `edgectl resume` or the next start.

*Shutdown request* is in the table because edge workers of Airflow have it; nothing asks for it in this version. What it
is wanted for, no more work for an agent, maintenance does, and it can be taken back from the server. An agent that has
gone cannot be called back from there: somebody has to go to the site, or systemd starts it again and nothing is gained.
To shut one out for good, revoke it (`airflow edge-agents revoke`): it ends with exit code 77 and stays down.

## A job

A job is one dispatch of one workload. A task instance that is deferred or rescheduled becomes a new job each time it
is queued.

While its agent is away, a job stays *accepted* or *running*, and its task *running* in Airflow, until the agent is back
or the disconnect lease is over, also if its task has ended there meanwhile; then the server ends it as *lost*. The
agent, if it lives, has ended it as *killed* before, if it still ran.

"""

OUTCOMES = """
An offer carries a number, its *fence*, which grows with each offer of the job. Whoever answers with an older number is
too late and is told so.

### How a job ends

| outcome | meaning |
| --- | --- |
"""

PHASES_HEAD = """
### On the agent

"""


def name(state: StrEnum) -> str:
    """Return a name that Mermaid takes as an identifier."""
    return str(state).replace(" ", "_")


def diagram(transitions: Mapping[Any, StrEnum]) -> str:
    """Draw a table as a Mermaid state diagram; events that change nothing are left out."""
    arrows: dict[tuple[StrEnum, StrEnum], list[str]] = {}
    for (state, event), target in transitions.items():
        if state is not target:
            arrows.setdefault((state, target), []).append(str(event))
    lines = [f"    {name(a)} --> {name(b)}: {', '.join(events)}" for (a, b), events in arrows.items()]
    return "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```", ""])


def table(states: type[StrEnum], events: type[StrEnum], cells: Mapping[Any, StrEnum]) -> str:
    """Write a table with a row for each state; an empty cell is an illegal transition."""
    rows = [
        "| | " + " | ".join(str(event) for event in events) + " |",
        "| --- |" + " --- |" * len(events),
    ]
    rows += [
        f"| **{state}** | " + " | ".join(str(cells.get((state, event), "")) for event in events) + " |"
        for state in states
    ]
    return "\n".join([*rows, ""])


def first_sentence(member: Outcome) -> str:
    """Return what the source says below the member."""
    source = inspect.getsource(Outcome)
    after = source.split(f'{member.name} = "{member.value}"\n', 1)[1]
    return " ".join(after.split('"""', 2)[1].split())


def page() -> str:
    """Write the whole page."""
    phases = [f"    {a} --> {b}" for a, targets in PHASES.items() for b in sorted(targets)]
    return "\n".join(
        [
            INTRODUCTION + diagram(AGENT_TRANSITIONS),
            table(AgentState, AgentEvent, AGENT_TRANSITIONS) + AGENT_NOTES + diagram(JOB_TRANSITIONS),
            table(JobState, JobEvent, JOB_TRANSITIONS)
            + OUTCOMES
            + "".join(f"| {outcome} | {first_sentence(outcome)} |\n" for outcome in Outcome)
            + PHASES_HEAD
            + "\n".join(["```mermaid", "stateDiagram-v2", *phases, "    finished --> [*]: result and log acknowledged"])
            + "\n```\n",
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page())
