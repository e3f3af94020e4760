"""The polls that wait in this api-server process, and the one task that finds something to say to them.

Whatever an agent is told comes from the database, so any number of these may run side by side: an offer is claimed
there before it is handed to a poll, and goes back there when its poll is gone.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sqlalchemy.exc import DBAPIError

from airflow_edge_agent.protocol.frames import (
    MAX_FRAMES,
    Cancel,
    Close,
    Maintenance,
    Offer,
    ServerFrame,
)
from airflow_edge_server.domain.identity import of_one_instance
from airflow_edge_server.store.dispatch import Dispatched, Mint, MintError, Room, Waiting, dispatch, give_back, sweep
from airflow_edge_server.store.notices import Notices, read_notices
from airflow_edge_server.store.transaction import Sessions, read

log = logging.getLogger(__name__)

REPEAT_SECONDS = 10.0
"""How often a cancel or a maintenance order is repeated while nothing comes of it."""

REFUSAL_PAUSE_SECONDS = 2.0
"""How long an agent that has refused an offer is left alone, so that the same job does not go back and forth."""

_FORGET_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the dispatcher looks."""

    busy_seconds: float = 0.2
    idle_seconds: float = 0.5
    idle_after_seconds: float = 60.0
    """Without any work found, the pace changes from busy to idle."""
    notices_seconds: float = 1.0
    """How often it looks for leases, cancels, maintenance and revoked tokens."""
    shortest_seconds: float = 0.02
    fault_seconds: float = 3.0
    """How long it waits after a fault of the database."""


@dataclass(eq=False, slots=True)
class Poll:
    """A request that waits for something to say to its agent."""

    agent_name: str
    session_id: str
    token_id: str
    room: Room
    answer: asyncio.Future[list[ServerFrame]]
    revoked: bool = False
    """Whether it ended because its token is not valid any more."""


@dataclass(slots=True)
class _Told:
    """What a session has been told already, and when (monotonic seconds)."""

    at: dict[str, float] = field(default_factory=dict)
    later: list[ServerFrame] = field(default_factory=list)
    used: float = 0.0


class Hub:
    """Waiting polls and the dispatcher.

    :param threads: runs the database work of the dispatcher.
    :param mint: makes the token of a job, given the id of its task instance or callback.
    """

    def __init__(
        self,
        sessions: Sessions,
        threads: Executor,
        *,
        lease_seconds: float,
        mint: Mint,
        pace: Pace | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._sessions = sessions
        self._threads = threads
        self._lease_seconds = lease_seconds
        self._mint = mint
        self._pace = pace or Pace()
        self._clock = clock
        self._polls: dict[str, Poll] = {}
        self._told: dict[str, _Told] = {}
        self._turns: dict[str, int] = {}
        self._paused: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()
        self._last_find = time.monotonic()
        self._last_notices = 0.0
        self._last_fault = ""

    def start(self) -> None:
        """Start the dispatcher."""
        self._task = asyncio.create_task(self._run(), name="edge-agents dispatcher")

    def stop_polls(self) -> None:
        """Answer every waiting poll at once, and those to come: the process is about to end."""
        self._ending.set()
        for poll in list(self._polls.values()):
            self._answer(poll, [])
        self._wake.set()

    async def stop(self) -> None:
        """Stop the dispatcher; what it is about to claim is still claimed and given back."""
        self.stop_polls()
        if self._task is not None:
            await self._task

    def nudge(self) -> None:
        """Let the dispatcher look now: there may be something for a poll."""
        self._last_find = time.monotonic()
        self._wake.set()

    def join(self, agent_name: str, session_id: str, token_id: str, room: Room) -> Poll:
        """Register a poll. An older one of the same agent ends with nothing to say."""
        older = self._polls.get(agent_name)
        if older is not None:
            self._answer(older, [])
        poll = Poll(agent_name, session_id, token_id, room, asyncio.get_running_loop().create_future())
        told = self._told_of(session_id)
        if self._ending.is_set() or told.later:
            frames, told.later = told.later[:MAX_FRAMES], told.later[MAX_FRAMES:]
            poll.answer.set_result(frames)
            return poll
        self._polls[agent_name] = poll
        self._wake.set()
        return poll

    def leave(self, poll: Poll) -> list[ServerFrame]:
        """Forget a poll whose request is over; return what it was given."""
        if self._polls.get(poll.agent_name) is poll:
            del self._polls[poll.agent_name]
        if poll.answer.done():
            return poll.answer.result()
        poll.answer.set_result([])
        return []

    def note_room(self, agent_name: str, room: Room, *, refused: bool) -> None:
        """Note what an agent can take now, as one of its requests has told."""
        if refused:
            self._paused[agent_name] = time.monotonic() + REFUSAL_PAUSE_SECONDS
        poll = self._polls.get(agent_name)
        if poll is not None and poll.session_id == room.session_id:
            if room.free_slots > poll.room.free_slots:
                self._wake.set()
            poll.room = room

    def note_session(self, agent_name: str, session_id: str, later: list[ServerFrame]) -> None:
        """Note a new session: a poll of the one before ends."""
        self._told_of(session_id).later = later
        poll = self._polls.get(agent_name)
        if poll is not None and poll.session_id != session_id:
            self._answer(poll, [_superseded(poll, session_id)])

    async def return_offers(self, offers: list[Offer]) -> None:
        """Put offers that could not be handed on back into their queues."""
        if not offers:
            return
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, give_back, self._sessions, offers)
        except (DBAPIError, RuntimeError):
            log.warning("%d offer(s) could not be put back at once; they return when their lease ends.", len(offers))
            return
        self.nudge()

    def _answer(self, poll: Poll, frames: list[ServerFrame]) -> bool:
        if self._polls.get(poll.agent_name) is poll:
            del self._polls[poll.agent_name]
        if poll.answer.done():
            return False
        poll.answer.set_result(frames)
        return True

    def _told_of(self, session_id: str) -> _Told:
        told = self._told.setdefault(session_id, _Told())
        told.used = time.monotonic()
        return told

    async def _run(self) -> None:
        while not self._ending.is_set():
            pause = self._pace.shortest_seconds
            if self._polls:
                self._wake.clear()
                try:
                    await self._round()
                    self._last_fault = ""
                except (DBAPIError, MintError) as error:
                    self._log_fault(error)
                    pause = self._pace.fault_seconds
                except Exception:
                    log.exception("The dispatcher failed; it goes on.")
                    pause = self._pace.fault_seconds
            # Many nudges at once are answered by one look.
            await _set_within(self._ending, pause)
            rest = self._interval() - pause if self._polls else None
            if rest is None or rest > 0:
                await _set_within(self._wake, rest)

    def _interval(self) -> float:
        idle = time.monotonic() - self._last_find >= self._pace.idle_after_seconds
        return self._pace.idle_seconds if idle else self._pace.busy_seconds

    def _log_fault(self, error: DBAPIError | MintError) -> None:
        text = str(error) if isinstance(error, MintError) else f"the database failed ({type(error.orig).__name__})"
        if text != self._last_fault:
            self._last_fault = text
            log.error("No jobs are offered: %s. Trying again every %g s.", text, self._pace.fault_seconds)

    async def _round(self) -> None:
        """Look once. All database work is done by one call in a thread."""
        started = time.monotonic()
        with_notices = started - self._last_notices >= self._pace.notices_seconds
        if with_notices:
            self._last_notices = started
            self._forget(started)
        polls = dict(self._polls)
        work = asyncio.get_running_loop().run_in_executor(
            self._threads, functools.partial(self._look, polls, started, with_notices=with_notices)
        )
        notices, dispatched = await work
        # A poll that was answered or left meanwhile must not swallow what was claimed for it.
        homeless: list[Offer] = []
        for name, offers in dispatched.offers.items():
            poll = polls[name]
            frames: list[ServerFrame] = list(offers)
            if self._polls.get(name) is poll and self._answer(poll, frames):
                self._turns[name] = self._turns.get(name, 0) + len(offers)
                self._last_find = time.monotonic()
            else:
                homeless.extend(offers)
        for name, room in dispatched.rooms.items():
            if name not in dispatched.offers and (waiting := self._polls.get(name)) is polls[name]:
                waiting.room = room
        if notices is not None:
            self._tell(polls, notices)
        await self.return_offers(homeless)

    def _look(self, polls: dict[str, Poll], started: float, *, with_notices: bool) -> tuple[Notices | None, Dispatched]:
        now = self._clock()
        notices = None
        if with_notices:
            sweep(self._sessions, now=now)
            token_ids = sorted({poll.token_id for poll in polls.values()})
            notices = read(self._sessions, lambda session: read_notices(session, sorted(polls), token_ids))
        rooms = notices.rooms if notices is not None else {name: poll.room for name, poll in polls.items()}
        waiting = [
            Waiting(name, poll.session_id, self._turns.get(name, 0))
            for name, poll in polls.items()
            if self._paused.get(name, 0) <= started and (notices is None or _undisturbed(poll, notices))
        ]
        found = dispatch(self._sessions, waiting, rooms, now=now, lease_seconds=self._lease_seconds, mint=self._mint)
        return notices, found

    def _tell(self, polls: dict[str, Poll], notices: Notices) -> None:
        now = time.monotonic()
        for name, poll in polls.items():
            if self._polls.get(name) is not poll:
                continue
            if poll.token_id in notices.revoked_tokens:
                poll.revoked = True
                self._answer(poll, [])
                continue
            room = notices.rooms.get(name)
            if room is None or room.session_id != poll.session_id:
                self._answer(poll, [_superseded(poll, room.session_id if room is not None else None)])
                continue
            poll.room = room
            frames = self._unrepeated(poll.session_id, _orders(name, notices), now)
            if frames:
                self._answer(poll, frames)

    def _unrepeated(self, session_id: str, frames: Iterable[Cancel | Maintenance], now: float) -> list[ServerFrame]:
        told = self._told_of(session_id)
        fresh: list[ServerFrame] = []
        for frame in frames:
            key = f"{frame.job_id}/{frame.fence}" if isinstance(frame, Cancel) else f"maintenance {frame.on}"
            if now - told.at.get(key, -REPEAT_SECONDS) >= REPEAT_SECONDS:
                told.at[key] = now
                fresh.append(frame)
        return fresh

    def _forget(self, now: float) -> None:
        for session_id in [key for key, told in self._told.items() if now - told.used > _FORGET_SECONDS]:
            del self._told[session_id]
        for told in self._told.values():
            for key in [key for key, at in told.at.items() if now - at > _FORGET_SECONDS]:
                del told.at[key]
        for name in [key for key, until in self._paused.items() if until <= now]:
            del self._paused[name]


async def _set_within(event: asyncio.Event, seconds: float | None) -> None:
    """Wait until the event is set, at most that long."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return


def _undisturbed(poll: Poll, notices: Notices) -> bool:
    """Tell whether a poll may be offered jobs, as far as the notices tell."""
    return poll.token_id not in notices.revoked_tokens and poll.agent_name not in notices.maintenance


def _orders(name: str, notices: Notices) -> list[Cancel | Maintenance]:
    orders: list[Cancel | Maintenance] = list(notices.cancels.get(name, ()))
    if name in notices.maintenance:
        orders.append(notices.maintenance[name])
    return orders


def _superseded(poll: Poll, session_id: str | None) -> Close:
    if session_id is not None and of_one_instance(session_id, poll.session_id):
        return Close(code="session_unknown", message="a later hello has replaced this session: say hello again")
    return Close(
        code="superseded", message=f"another session of {poll.agent_name!r} has taken over, or this one was ended"
    )
