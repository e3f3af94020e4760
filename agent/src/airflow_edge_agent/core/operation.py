"""What operators ask for at either end: maintenance, drain, other limits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

from airflow_edge_agent.core.events import (
    DrainAsked,
    Event,
    Instruction,
    KeepMaintenance,
    LimitsChanged,
    MaintenanceDecided,
    MaintenanceRemembered,
    ResumeAsked,
    Send,
)
from airflow_edge_agent.core.jobs import AgentJob
from airflow_edge_agent.core.maintenance import MaintenanceMemory, MaintenanceRecord, settles
from airflow_edge_agent.core.policy import Limits
from airflow_edge_agent.protocol.enrolment import permitted
from airflow_edge_agent.protocol.frames import Controls, Maintenance, MaintenanceAsked, Welcome
from airflow_edge_agent.protocol.states import AgentEvent, AgentState, can, next_state


class OperatedAgent(ABC):
    """The part of the core that obeys operators."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.state = AgentState.STARTING
        self.connected = False
        self.maintenance = MaintenanceMemory()
        self.drained_by: str | None = None
        """Who wants no new jobs here; not kept over restarts."""
        self._drain_until: float | None = None
        self._server_wish: Maintenance | None = None
        self._first_queues = limits.queues
        self.controls: Controls | None = None
        """What the server wants otherwise than configured, as last heard."""
        self.granted: list[str] | None = None
        """Queues that the server lets us serve, ``["*"]`` for every one; ``None``: it has not said."""
        self.team: str | None = None
        """Whose jobs we get; ``None``: those of no team."""
        self._out: list[Instruction] = []

    def _operated(self, event: Event, now: float) -> None:
        match event:
            case DrainAsked():
                self._drain(event, now)
            case ResumeAsked(by):
                self._resume(by)
            case MaintenanceRemembered(memory):
                self._remembered(memory)
            case MaintenanceDecided():
                self._decided(event)
            case LimitsChanged(limits):
                self._limits_changed(limits)

    def _move(self, event: AgentEvent) -> None:
        self.state = next_state(self.state, event)

    # --- What the rest of the core knows ------------------------------------------------------------------------------

    @property
    @abstractmethod
    def slots_used(self) -> int:
        """Slots of the jobs that hold some."""

    @property
    @abstractmethod
    def stopping(self) -> bool:
        """Whether the agent is on its way out."""

    @abstractmethod
    def _describe_jobs(self) -> str: ...

    @abstractmethod
    def _say(self, level: str, message: str, job: AgentJob | None = None, *, name: str | None = None) -> None: ...

    @property
    def refused_queues(self) -> list[str]:
        """Those of our queues that the server does not let us serve; empty as long as it has not said."""
        if self.granted is None:
            return []
        return sorted(set(self.queues) - set(permitted(self.queues, self.granted)))

    def _warn_of_refused_queues(self) -> None:
        if self.refused_queues:
            self._say(
                "warning",
                f"gets no jobs of these queues, since it was not enrolled for them: {', '.join(self.refused_queues)}; "
                f"enrolled for: {', '.join(self.granted or ()) or 'none'}",
                name="queues_refused",
            )

    # --- Maintenance --------------------------------------------------------------------------------------------------

    def _welcomed(self, welcome: Welcome) -> None:
        self._server_wish = None
        self.granted, self.team = welcome.granted_queues, welcome.team
        self._control(welcome.controls)
        self._warn_of_refused_queues()
        if welcome.maintenance is not None:
            self._server_wish = Maintenance(
                on=welcome.maintenance,
                comment=welcome.maintenance_comment,
                by=welcome.maintenance_by,
                since=welcome.maintenance_since or welcome.server_time,
            )
            self._maintenance(self._server_wish)
        if self.maintenance.untold is not None:
            self._out.append(Send(self.maintenance.untold))

    def _steered(self, frame: Maintenance | Controls) -> None:
        if isinstance(frame, Controls):
            self._control(frame)
        else:
            self._maintenance(frame)

    def _maintenance(self, frame: Maintenance) -> None:
        """Obey the server, unless a decision made here is still on its way to it."""
        if not settles(self.maintenance.untold, frame):
            return
        self._remember(untold=None)
        if self._enter_or_leave(on=frame.on, comment=frame.comment, by=frame.by):
            since = frame.since or frame.settled
            record = None
            if frame.on and since is not None:
                record = MaintenanceRecord(frame.by, since, frame.comment, source="server")
            self._remember(record=record)

    def _remembered(self, memory: MaintenanceMemory) -> None:
        self.maintenance = memory
        if memory.record is not None and can(self.state, AgentEvent.MAINTENANCE_ON):
            self._move(AgentEvent.MAINTENANCE_ON)

    def _decided(self, event: MaintenanceDecided) -> None:
        record = None
        if event.on:
            record = MaintenanceRecord(event.by, event.at, event.comment, event.until, event.source)
        elif self.maintenance.record is None and not can(self.state, AgentEvent.MAINTENANCE_OFF):
            return  # already so
        asked = MaintenanceAsked(on=event.on, by=event.by, since=event.at, comment=event.comment)
        self._remember(record=record, untold=asked)
        # First the decision: with the state alone the server would hold its own wish against it.
        if self.connected:
            self._out.append(Send(asked))
        self._enter_or_leave(on=event.on, comment=event.comment, by=event.by)

    def _enter_or_leave(self, *, on: bool, comment: str | None, by: str | None) -> bool:
        event = AgentEvent.MAINTENANCE_ON if on else AgentEvent.MAINTENANCE_OFF
        if self.stopping or not can(self.state, event):
            return False  # already so
        self._move(event)
        text = (
            f"maintenance {'on' if on else 'off'}" + (f", by {by}" if by else "") + (f": {comment}" if comment else "")
        )
        self._say("info", text, name="maintenance_on" if on else "maintenance_off")
        return True

    def _remember(self, **changes: MaintenanceRecord | MaintenanceAsked | None) -> None:
        memory = replace(self.maintenance, **changes)  # type: ignore[arg-type]  # its two fields
        if memory != self.maintenance:
            self.maintenance = memory
            self._out.append(KeepMaintenance(memory))

    # --- What the server wants otherwise than configured --------------------------------------------------------------

    @property
    def concurrency(self) -> int:
        """How many slots there are: the server's word counts before the configuration's."""
        return (self.controls and self.controls.slots) or self.limits.concurrency

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues that are served: the configured ones, with what the server adds and without what it removes."""
        controls = self.controls
        if controls is None:
            return self.limits.queues
        own = [queue for queue in self.limits.queues if queue not in controls.queues_removed]
        return (*own, *(queue for queue in controls.queues_added if queue not in own))

    @property
    def drained_by_server(self) -> bool:
        """Whether the server offers nothing here, because an administrator wants it so."""
        return self.controls is not None and self.controls.drain

    def _control(self, controls: Controls | None) -> None:
        slots, queues, drained = self.concurrency, self.queues, self.drained_by_server
        self.controls = controls
        changes = []
        if self.concurrency != slots:
            changes.append(f"{self.concurrency} slots instead of {slots}")
        if self.queues != queues:
            changes.append(f"queues are now: {', '.join(self.queues) or 'none'}")
        if self.drained_by_server != drained:
            changes.append("takes jobs again" if drained else "takes no new jobs")
        for change in changes:
            self._say("info", f"{change}, as the server wants it", name="controls")

    # --- Drain and limits ---------------------------------------------------------------------------------------------

    def _drain(self, event: DrainAsked, now: float) -> None:
        self.drained_by = event.by
        self._drain_until = None if event.deadline_seconds is None else now + event.deadline_seconds
        deadline = f" for at most {event.deadline_seconds:g} s" if event.deadline_seconds is not None else ""
        waiting = f", waits{deadline} for {self._describe_jobs()}" if self.slots_used else ""
        self._say("info", f"takes no new jobs, on request of {event.by}{waiting}", name="drained")

    def _resume(self, by: str) -> None:
        if self.drained_by is not None:
            self.drained_by = None
            self._drain_until = None
            self._say("info", f"takes jobs again, on request of {by}", name="resumed")

    def _limits_changed(self, limits: Limits) -> None:
        slots, queues = self.concurrency, self.queues
        self.limits = limits
        if self.concurrency != slots:
            self._say("info", f"{self.concurrency} slots instead of {slots}")
        if self.queues != queues:
            self._say("info", f"queues are now: {', '.join(self.queues)}")
            self._warn_of_refused_queues()
