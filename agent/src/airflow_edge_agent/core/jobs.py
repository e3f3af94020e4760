"""A job as the agent holds it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from airflow_edge_agent.core.events import FinalSettled, JobEnded
from airflow_edge_agent.core.spool import Spooled
from airflow_edge_agent.core.tasks import TaskKey
from airflow_edge_agent.protocol.frames import HeldJob, Offer, Result
from airflow_edge_agent.protocol.states import IllegalTransition


class Phase(StrEnum):
    """Where a job is on the agent."""

    ACCEPTING = "accepting"
    """We said yes, and wait for the server's word that it came in time."""
    STARTING = "starting"
    RUNNING = "running"
    FINISHED = "finished"
    """Over here; result or log are not yet acknowledged."""


PHASES: dict[Phase, frozenset[Phase]] = {
    Phase.ACCEPTING: frozenset({Phase.STARTING}),
    Phase.STARTING: frozenset({Phase.RUNNING, Phase.FINISHED}),
    Phase.RUNNING: frozenset({Phase.FINISHED}),
    Phase.FINISHED: frozenset(),
}
"""Which phase may follow which. A job in ``ACCEPTING`` may also simply be dropped: nothing of it ran."""

_HELLO_PHASES: dict[Phase, Literal["accepted", "running", "finished"]] = {
    Phase.STARTING: "accepted",
    Phase.RUNNING: "running",
    Phase.FINISHED: "finished",
}


@dataclass
class AgentJob:
    """One dispatch in the agent's hands. Times are monotonic seconds."""

    job_id: str
    fence: int
    slots: int
    label: str
    phase: Phase
    offer: Offer | None = None
    """Kept until the start: it holds the token, which nobody needs afterwards."""
    lease_until: float = 0.0
    pid: int | None = None
    ended: JobEnded | None = None
    cancel_reason: str | None = None
    kill_at: float | None = None
    """When SIGTERM gives way to SIGKILL."""
    result_acked: bool = False
    log_size: int = 0
    log_acked: int = 0
    log_sent: int = 0
    """Nothing of the log beyond this was ever sent, also not by an earlier run of the daemon."""
    log_sent_here: int = 0
    """Nothing beyond this was sent in the present session."""
    log_offset_known: bool = False
    """Whether the server has said in this session what it has."""
    log_in_flight: bool = False
    task: TaskKey | None = None
    started_at: float | None = None
    """``None``: not by this run of the daemon."""
    disconnect_lease_seconds: float = 0.0
    """How long it may run on without the server, if it is relayed. 0: nothing is said about it."""
    heard_at: float = 0.0
    """When the server last answered it, or confirmed it to us."""
    ending: bool = False
    """It waits for the server to hear its return value or its final state."""
    unsaid: bool = False
    """Its final state waits on disk for Airflow."""
    settled: FinalSettled | None = None
    """What became of it."""
    ended_unsaid: bool = False
    """It ended while its final state waited."""
    log_unsheddable: bool = False
    """An attempt to drop some of it did not make it smaller."""

    @property
    def holds_slots(self) -> bool:
        """Whether its slots are taken: until its processes are gone, not until the server knows."""
        return self.phase is not Phase.FINISHED

    @property
    def works(self) -> bool:
        """Whether it has something to do besides waiting for the server to hear how it ended."""
        return self.holds_slots and not (self.ending or self.unsaid)

    @property
    def done(self) -> bool:
        """Whether nothing of it is left to deliver."""
        told = self.result_acked and not self.unsaid
        return self.phase is Phase.FINISHED and told and self.log_acked >= self.log_size

    @property
    def settling(self) -> bool:
        """Whether its slots are still kept from the server: state, result and log of an outage come before new jobs."""
        return self.phase is Phase.FINISHED and self.ended_unsaid and not self.done

    def move(self, phase: Phase) -> None:
        """Enter another phase.

        :raises IllegalTransition: if that phase may not follow.
        """
        if phase not in PHASES[self.phase]:
            raise IllegalTransition(self.phase, phase, [str(p) for p in PHASES[self.phase]])
        self.phase = phase
        if phase is not Phase.STARTING:
            self.offer = None

    def held(self) -> HeldJob | None:
        """Describe it for a hello; ``None`` if it is not ours yet."""
        phase = _HELLO_PHASES.get(self.phase)
        if phase is None:
            return None
        outcome = None if self.ended is None else self.ended.outcome
        return HeldJob(job_id=self.job_id, fence=self.fence, phase=phase, log_bytes=self.log_size, outcome=outcome)

    def spooled(self) -> Spooled:
        """Describe its log for the spool."""
        sent = self.log_size if self.log_unsheddable else self.log_sent
        return Spooled(self.job_id, self.phase is Phase.FINISHED, self.log_size, self.log_acked, sent)

    def result(self) -> Result:
        """Describe its end. Only in phase ``FINISHED``."""
        assert self.ended is not None
        return Result(
            job_id=self.job_id,
            fence=self.fence,
            outcome=self.ended.outcome,
            exit_code=self.ended.exit_code,
            detail=self.ended.detail,
            log_bytes=self.log_size,
            usage=self.ended.usage,
        )
