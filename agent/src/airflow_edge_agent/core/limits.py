"""Which limits a job gets: the task's own over its queue's over the agent's, and none beyond the agent's maximum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from airflow_edge_agent.protocol.limits import JobLimits

_DEFAULT_IO_WEIGHT = 100
"""What the kernel gives a group that asks for none."""


@dataclass(frozen=True)
class LimitRules:
    """What the operator of this agent has decided."""

    defaults: JobLimits = field(default_factory=JobLimits)
    queues: Mapping[str, JobLimits] = field(default_factory=dict)
    """By name of the queue."""
    maximum: JobLimits = field(default_factory=JobLimits)
    """No job gets more, whatever is asked for; a job without a limit gets this one."""


@dataclass(frozen=True)
class Granted:
    """The limits of one job."""

    limits: JobLimits
    cut: tuple[str, ...] = ()
    """Names of those that the task asked for and got less of."""


def grant(rules: LimitRules, queue: str, asked: JobLimits | None) -> Granted:
    """Decide the limits of a job.

    :param asked: what the task asks for; ``None``: nothing.
    """
    chosen: dict[str, float | None] = {}
    for source in (rules.defaults, rules.queues.get(queue), asked):
        if source is not None:
            chosen |= source.model_dump(exclude_none=True)
    cut = []
    for name, most in rules.maximum.model_dump(exclude_none=True).items():
        wanted = chosen.get(name)
        if wanted is None and name == "io_weight":
            wanted = _DEFAULT_IO_WEIGHT
        if wanted is not None and wanted <= most:
            continue
        chosen[name] = most
        if asked is not None and getattr(asked, name) is not None:
            cut.append(name)
    return Granted(JobLimits.model_validate(chosen), tuple(cut))
