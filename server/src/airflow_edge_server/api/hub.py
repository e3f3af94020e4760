"""The lines of the agents that wait in this api-server process, and the one task that finds something to say to them.

Whatever an agent is told comes from the database, so any number of these may run side by side: an offer is claimed
there before it is handed to a line, and goes back there when its line is gone.

Longer than other modules: what is said, when it is looked for and what becomes of it when nobody hears it are one
matter, and apart they would have to share all of the state.
"""

from __future__ import annotations

import asyncio
import functools
import time
import uuid
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from sqlalchemy.exc import DBAPIError

from airflow_edge_agent.protocol.frames import (
    MAX_FRAMES,
    Cancel,
    Close,
    Controls,
    Maintenance,
    Offer,
    Rotate,
    ServerFrame,
)
from airflow_edge_server import plainly
from airflow_edge_server.api.lines import Ending, Line, Poll
from airflow_edge_server.api.service import Answer
from airflow_edge_server.api.witness import POLL_GAP_SECONDS, Witness
from airflow_edge_server.domain.identity import of_one_instance
from airflow_edge_server.store.dispatch import (
    DisconnectLease,
    Dispatched,
    Mint,
    MintError,
    Room,
    Waiting,
    dispatch,
    give_back,
    give_back_offered,
    give_back_unstarted,
    read_rooms,
    sweep,
)
from airflow_edge_server.store.notices import Notices, read_notices
from airflow_edge_server.store.presence import FLUSH_SECONDS, Presence
from airflow_edge_server.store.transaction import Sessions, read
from airflow_edge_server.store.wakeup import Topic
from airflow_edge_server.store.watch import WATCH_SECONDS, TaskWatch

log = plainly.logger(__name__)

REPEAT_SECONDS = 10.0
"""How often a cancel or a maintenance order is repeated while nothing comes of it."""

REFUSAL_PAUSE_SECONDS = 2.0
"""How long an agent that has refused an offer is left alone, so that the same job does not go back and forth."""

MAX_UNANSWERED = 200
"""Most offers of this process at a time that no agent has answered; further ones are made once half of them are.

An offer has a lease. If more were made than answers can be stored within it, they would come back, be made anew, and
keep the answers to the others from being stored.
"""

ASK_SECONDS = 2.0
"""How long an agent on a standing connection may take to show that it lives."""

_FORGET_SECONDS = 120.0
_LAST_SECONDS = 3.0


Order = Cancel | Maintenance | Controls | Rotate


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the dispatcher looks."""

    busy_seconds: float = 0.2
    idle_seconds: float = 0.5
    idle_after_seconds: float = 60.0
    """Without any work found, the pace changes from busy to idle."""
    listening_seconds: float = 5.0
    """The pace while the database tells when there is work."""
    listening_after_seconds: float = 2.0
    """How long after work was found the pace is busy even then."""
    notices_seconds: float = 1.0
    """How often it looks for leases, cancels, maintenance and revoked or aged credentials."""
    listening_notices_seconds: float = 5.0
    """The same, for all but leases, while the database tells when there is an order."""
    watch_seconds: float = WATCH_SECONDS
    """How often it looks whether Airflow has ended tasks that agents run."""
    flush_seconds: float = FLUSH_SECONDS
    shortest_seconds: float = 0.02
    fault_seconds: float = 3.0
    """How long it waits after a fault of the database."""
    lost_seconds: float = 5.0
    """How long an agent may be without connection until what it never started is taken from it."""


@dataclass(slots=True)
class _Told:
    """What a session has been told already, and when (monotonic seconds)."""

    at: dict[str, float] = field(default_factory=dict)
    later: list[ServerFrame] = field(default_factory=list)
    used: float = 0.0


@dataclass(frozen=True, slots=True)
class _Lost:
    """A session whose line broke."""

    session_id: str
    since: datetime
    due: float
    """When to take from it what it never started, in monotonic seconds."""


@dataclass(slots=True)
class _Tasks:
    """What one look of the dispatcher includes."""

    jobs: bool
    leases: bool
    notices: bool
    watch: bool
    flush: bool
    lost: list[tuple[str, _Lost]]
    busy: set[str]
    """Agents that were offered something since the last look at leases: what room they have is read anew."""


class Hub:
    """Waiting lines and the dispatcher.

    :param threads: runs the database work of the dispatcher.
    :param mint: makes the token of a job, given the id of its task instance or callback.
    :param disconnect_lease: tells how long the agent of a relayed job may be away.
    :param revoke_grace_seconds: how long an agent that was revoked may finish its jobs.
    :param presence: signs of life, written here from time to time.
    """

    def __init__(
        self,
        sessions: Sessions,
        threads: Executor,
        *,
        lease_seconds: float,
        mint: Mint,
        disconnect_lease: DisconnectLease,
        revoke_grace_seconds: float,
        presence: Presence | None = None,
        pace: Pace | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._sessions = sessions
        self._threads = threads
        self._lease_seconds = lease_seconds
        self._mint = mint
        self._disconnect_lease = disconnect_lease
        self._revoke_grace_seconds = revoke_grace_seconds
        self._presence = Presence() if presence is None else presence
        self._witness = Witness()
        self._watch = TaskWatch(sessions)
        self._pace = pace or Pace()
        self._clock = clock
        self._lines: dict[str, Line] = {}
        self._told: dict[str, _Told] = {}
        self._turns: dict[str, int] = {}
        self._paused: dict[str, float] = {}
        self._lost: dict[str, _Lost] = {}
        self._busy: set[str] = set()
        self._unanswered: dict[str, float] = {}
        """Jobs that were offered here, and when they were (monotonic seconds), until the agent answers."""
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._returning: set[asyncio.Task[None]] = set()
        self._ending = asyncio.Event()
        self._listening = False
        self._nudged = True
        self._last_find = time.monotonic()
        self._last_leases = self._last_jobs = self._last_notices = self._last_watch = self._last_flush = 0.0
        self._last_fault = ""

    def start(self) -> None:
        """Start the dispatcher."""
        self._task = asyncio.create_task(self._run(), name="edge-agents dispatcher")

    def stop_lines(self) -> None:
        """End every line at once, and those to come: the process is about to end."""
        self._ending.set()
        for line in list(self._lines.values()):
            self._drop(line)
            line.end(Ending.STOPPING, [])
        self._wake.set()

    async def stop(self) -> None:
        """Stop the dispatcher; what it is about to claim is still claimed and given back."""
        self.stop_lines()
        if self._task is not None:
            await self._task
        if self._returning:
            await asyncio.wait(self._returning, timeout=_LAST_SECONDS)
        try:
            work = asyncio.get_running_loop().run_in_executor(self._threads, self._presence.flush, self._sessions)
            await asyncio.wait_for(work, _LAST_SECONDS)
        except (DBAPIError, TimeoutError):
            log.warning("The last signs of life of agents could not be stored.")

    def nudge(self) -> None:
        """Let the dispatcher look now: there may be a job for somebody."""
        self._last_find = time.monotonic()
        self._nudged = True
        self._wake.set()

    def heard(self, topic: str) -> None:
        """Note what another process has announced."""
        if topic == Topic.JOBS:
            self.nudge()
        elif topic == Topic.ORDERS:
            self._last_notices = 0.0
            self._wake.set()

    def listening(self, live: bool) -> None:  # noqa: FBT001  a callback with one argument
        """Note whether the database tells when there is work; if so it is asked less often."""
        self._listening = live
        # What was announced while nobody listened has to be looked for.
        self.nudge()

    def join(self, line: Line) -> None:
        """Register a line. An older one of the same agent ends."""
        self.note_sign(line.agent_name, line.session_id)
        older = self._lines.pop(line.agent_name, None)
        if older is not None:
            older.end(Ending.REPLACED, [])
        if self._ending.is_set():
            line.end(Ending.STOPPING, [])
            return
        told = self._told_of(line.session_id)
        if told.later:
            frames, told.later = told.later[:MAX_FRAMES], told.later[MAX_FRAMES:]
            line.say(frames)
            if not line.lasting:
                return
        self._lines[line.agent_name] = line
        self._lost.pop(line.agent_name, None)
        self._nudged |= line.room.free_slots > 0
        self._wake.set()

    def leave(self, poll: Poll) -> list[ServerFrame]:
        """Forget a poll whose request is over; return what it was given."""
        self._drop(poll)
        self._witness.answered(poll.agent_name, poll.session_id)
        return poll.take()

    def hang_up(self, line: Line) -> None:
        """Forget a line that has broken or was closed; what it was offered and did not accept goes back."""
        current = self._drop(line)
        if not line.session_id:
            return
        self._witness.broke(line.agent_name, line.session_id)
        if current and not self._ending.is_set():
            self.miss(line)
        task = asyncio.create_task(self._return_offered(line.agent_name, line.session_id))
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)

    def miss(self, line: Line) -> None:
        """Note that an agent is gone from its line. Unless it is heard of again, it loses what it never started."""
        self._witness.broke(line.agent_name, line.session_id)
        due = time.monotonic() + self._pace.lost_seconds
        self._lost[line.agent_name] = _Lost(line.session_id, self._clock(), due)
        self._wake.set()

    def note_sign(self, agent_name: str, session_id: str) -> None:
        """Note that something came from an agent in this session."""
        self._witness.heard(agent_name, session_id)

    async def is_over(self, agent_name: str, session_id: str) -> bool:
        """Find out whether nobody speaks for a session any more. Asks the agent, if its line is here.

        Only what was seen in this process is known: ``False`` if the session is another's.
        """
        if self._line_of(agent_name, session_id) is None:
            left = self._witness.seconds_left(agent_name, session_id)
            if left is None or (left > 0 and not await self._witness.is_silent(agent_name, session_id, left)):
                return False
        line = self._line_of(agent_name, session_id)
        if line is None:
            return True
        # Every agent answers this at once: whatever it is told to end, it reports as ended.
        nothing = Cancel(job_id=str(uuid.uuid4()), fence=1, reason="are you there?")
        seconds = ASK_SECONDS if line.lasting else POLL_GAP_SECONDS
        self._say(line, [nothing])
        return await self._witness.is_silent(agent_name, session_id, seconds)

    def _line_of(self, agent_name: str, session_id: str) -> Line | None:
        line = self._lines.get(agent_name)
        return line if line is not None and line.session_id == session_id else None

    def note_answer(self, agent_name: str, answer: Answer) -> None:
        """Note what a batch of an agent has changed for those who wait."""
        for job_id in answer.settled:
            self._unanswered.pop(job_id, None)
        if answer.settled and self._nudged:
            self._wake.set()
        if answer.room is not None:
            self._note_room(agent_name, answer.room, refused=answer.refused)
        if answer.requeued:
            self.nudge()
        self.note_alive()

    def note_alive(self) -> None:
        """Have signs of life written, though nothing else may be to be done."""
        if not self._lines:
            # Without lines nothing else would have them written.
            self._wake.set()

    def _note_room(self, agent_name: str, room: Room, *, refused: bool) -> None:
        if refused:
            self._paused[agent_name] = time.monotonic() + REFUSAL_PAUSE_SECONDS
        line = self._lines.get(agent_name)
        if line is not None and line.session_id == room.session_id:
            if room.free_slots > line.room.free_slots:
                self._nudged = True
                self._wake.set()
            line.room = room

    def note_session(self, agent_name: str, session_id: str, later: list[ServerFrame]) -> None:
        """Note a new session: a line of the one before ends."""
        self._told_of(session_id).later = later
        self.note_sign(agent_name, session_id)
        self._lost.pop(agent_name, None)
        line = self._lines.get(agent_name)
        if line is not None and line.session_id != session_id:
            self._end(line, Ending.CLOSED, [_superseded(line, session_id)])

    async def return_offers(self, offers: list[Offer]) -> None:
        """Put offers that could not be handed on back into their queues."""
        if offers:
            await self._give_back(functools.partial(give_back, self._sessions, offers))

    async def _return_offered(self, agent_name: str, session_id: str) -> None:
        await self._give_back(functools.partial(give_back_offered, self._sessions, agent_name, session_id))

    async def _give_back(self, work: Callable[[], int]) -> None:
        try:
            count = await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except (DBAPIError, RuntimeError):
            log.warning("Offers could not be put back at once; they return when their lease ends.")
            return
        if count:
            self.nudge()

    def _drop(self, line: Line) -> bool:
        """Forget a line; return whether it was the current one of its agent."""
        if self._lines.get(line.agent_name) is not line:
            return False
        del self._lines[line.agent_name]
        return True

    def _end(self, line: Line, ending: Ending, frames: list[ServerFrame]) -> None:
        self._drop(line)
        line.end(ending, frames)

    def _say(self, line: Line, frames: list[ServerFrame]) -> bool:
        """Say it on the line, or on the one that its session has opened in its place."""
        current = self._lines.get(line.agent_name)
        if current is None or current.session_id != line.session_id:
            return False
        if not current.lasting:
            self._drop(current)
        return current.say(frames)

    def _told_of(self, session_id: str) -> _Told:
        told = self._told.setdefault(session_id, _Told())
        told.used = time.monotonic()
        return told

    async def _run(self) -> None:
        while not self._ending.is_set():
            pause = self._pace.shortest_seconds
            tasks = self._due(time.monotonic())
            if tasks is not None:
                try:
                    await self._round(tasks)
                    self._last_fault = ""
                except (DBAPIError, MintError) as error:
                    self._log_fault(error)
                    pause = self._put_off(tasks)
                except Exception:
                    log.exception("The dispatcher failed; it goes on.")
                    pause = self._put_off(tasks)
            # Many nudges at once are answered by one look.
            await _set_within(self._ending, pause)
            rest = self._rest(time.monotonic())
            if rest is None or rest > 0:
                await _set_within(self._wake, rest)
            self._wake.clear()

    def _due(self, now: float) -> _Tasks | None:
        """Return what has to be done now, and note that it is; ``None``: nothing."""
        pace, lines = self._pace, bool(self._lines)
        lost = [(name, lost) for name, lost in self._lost.items() if lost.due <= now]
        tasks = _Tasks(
            jobs=lines and (self._nudged or now - self._last_jobs >= self._interval(now)) and self._may_offer(now) > 0,
            leases=lines and now - self._last_leases >= pace.notices_seconds,
            notices=lines and now - self._last_notices >= self._notice_interval(),
            watch=lines and now - self._last_watch >= pace.watch_seconds,
            flush=bool(self._presence) and now - self._last_flush >= pace.flush_seconds,
            lost=lost,
            busy=set(),
        )
        if tasks.jobs:
            self._last_jobs, self._nudged = now, False
        if tasks.leases:
            self._last_leases = now
            tasks.busy, self._busy = self._busy, set()
        if tasks.notices:
            self._last_notices = now
            self._forget(now)
        if tasks.watch:
            self._last_watch = now
        if tasks.flush:
            self._last_flush = now
        for name, _ in lost:
            del self._lost[name]
        due = tasks.jobs or tasks.leases or tasks.notices or tasks.watch or tasks.flush or lost
        return tasks if due else None

    def _put_off(self, tasks: _Tasks) -> float:
        """Note that what was due could not be done; return how long to wait."""
        self._nudged = True
        self._lost = dict(tasks.lost) | self._lost
        return self._pace.fault_seconds

    def _rest(self, now: float) -> float | None:
        """Return how long nothing is due; ``None``: until something happens."""
        pace = self._pace
        times = [lost.due for lost in self._lost.values()]
        if self._lines:
            if self._may_offer(now) > 0:
                times.append(0.0 if self._nudged else self._last_jobs + self._interval(now))
            times.append(self._last_leases + pace.notices_seconds)
            times.append(self._last_notices + self._notice_interval())
            times.append(self._last_watch + pace.watch_seconds)
        if self._presence or self._lines:
            times.append(self._last_flush + pace.flush_seconds if self._presence else now + pace.flush_seconds)
        return min(times) - now if times else None

    def _may_offer(self, now: float) -> int:
        """Return how many more jobs may be offered before agents have answered."""
        if len(self._unanswered) > MAX_UNANSWERED // 2:
            # Whose lease has ended is not waited for.
            for job_id in [key for key, at in self._unanswered.items() if now - at > self._lease_seconds]:
                del self._unanswered[job_id]
        left = MAX_UNANSWERED - len(self._unanswered)
        return left if left >= MAX_UNANSWERED // 2 else 0

    def _notice_interval(self) -> float:
        return self._pace.listening_notices_seconds if self._listening else self._pace.notices_seconds

    def _interval(self, now: float) -> float:
        idle = now - self._last_find
        if self._listening and not self._paused:
            return (
                self._pace.listening_seconds if idle >= self._pace.listening_after_seconds else self._pace.busy_seconds
            )
        return self._pace.idle_seconds if idle >= self._pace.idle_after_seconds else self._pace.busy_seconds

    def _log_fault(self, error: DBAPIError | MintError) -> None:
        text = str(error) if isinstance(error, MintError) else f"the database failed ({type(error.orig).__name__})"
        if text != self._last_fault:
            self._last_fault = text
            log.error("No jobs are offered: %s. Trying again every %g s.", text, self._pace.fault_seconds)

    async def _round(self, tasks: _Tasks) -> None:
        """Look once. All database work is done by one call in a thread."""
        started = time.monotonic()
        lines = dict(self._lines)
        work = asyncio.get_running_loop().run_in_executor(
            self._threads, functools.partial(self._look, lines, started, tasks)
        )
        notices, dispatched, returned = await work
        # A line that was answered or left meanwhile must not swallow what was claimed for it.
        homeless: list[Offer] = []
        for name, offers in dispatched.offers.items():
            line = lines[name]
            if self._say(line, list(offers)):
                slots = sum(offer.slots for offer in offers)
                line.room = replace(line.room, free_slots=max(line.room.free_slots - slots, 0))
                self._busy.add(name)
                self._unanswered.update((offer.job_id, started) for offer in offers)
                self._turns[name] = self._turns.get(name, 0) + len(offers)
                self._last_find = time.monotonic()
            else:
                homeless.extend(offers)
        for name, room in dispatched.rooms.items():
            if name not in dispatched.offers and (waiting := self._lines.get(name)) is lines[name]:
                self._nudged |= room.free_slots > waiting.room.free_slots
                waiting.room = room
        if notices is not None:
            self._tell(lines, notices, offered=dispatched.offers)
        if returned or dispatched.more:
            self.nudge()
        await self.return_offers(homeless)

    def _look(self, lines: dict[str, Line], started: float, tasks: _Tasks) -> tuple[Notices | None, Dispatched, int]:
        now = self._clock()
        notices = None
        names = sorted(lines)
        if tasks.flush:
            self._presence.flush(self._sessions)
        returned = 0
        for name, lost in tasks.lost:
            returned += give_back_unstarted(self._sessions, name, lost.session_id, since=lost.since)
        cancelled = self._watch.look(names) if tasks.watch else 0
        if tasks.leases or cancelled:
            returned += sweep(self._sessions, now=now)
        if tasks.notices or cancelled:
            credential_ids = sorted({line.credential_id for line in lines.values()})
            grace = self._revoke_grace_seconds
            notices = read(
                self._sessions,
                lambda session: read_notices(session, names, credential_ids, revoke_grace_seconds=grace),
            )
        rooms = notices.rooms if notices is not None else {name: line.room for name, line in lines.items()}
        busy = [] if notices is not None else [name for name in tasks.busy if name in lines]
        anew = read(self._sessions, lambda session: read_rooms(session, busy)) if busy else {}
        anew = {name: room for name, room in anew.items() if room.session_id == lines[name].session_id}
        if not tasks.jobs:
            return notices, Dispatched(rooms=anew), returned
        rooms = rooms | anew
        waiting = [
            Waiting(name, line.session_id, self._turns.get(name, 0))
            for name, line in lines.items()
            if self._paused.get(name, 0) <= started and (notices is None or _undisturbed(line, notices))
        ]
        found = dispatch(
            self._sessions,
            waiting,
            rooms,
            now=now,
            lease_seconds=self._lease_seconds,
            mint=self._mint,
            disconnect_lease=self._disconnect_lease,
            most=self._may_offer(started),
        )
        found.rooms = anew | found.rooms
        return notices, found, returned

    def _tell(self, lines: dict[str, Line], notices: Notices, *, offered: Collection[str]) -> None:
        now = time.monotonic()
        for name, line in lines.items():
            if self._lines.get(name) is not line:
                continue
            if line.credential_id in notices.revoked_credentials:
                # The last that it hears: which of its jobs are to end with it.
                self._end(line, Ending.REVOKED, list(notices.cancels.get(name, ())))
                continue
            room = notices.rooms.get(name)
            if room is None or room.session_id != line.session_id:
                self._end(line, Ending.CLOSED, [_superseded(line, room.session_id if room is not None else None)])
                continue
            if name not in offered:
                if room.free_slots > line.room.free_slots:
                    self._nudged = True
                    self._wake.set()
                line.room = room
            frames = self._unrepeated(line.session_id, _orders(name, line, notices), now)
            if frames:
                self._say(line, frames)

    def _unrepeated(self, session_id: str, frames: Iterable[Order], now: float) -> list[ServerFrame]:
        told = self._told_of(session_id)
        fresh: list[ServerFrame] = []
        for frame in frames:
            key = _name_of(frame)
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
            # What was kept from it while it was left alone has to be looked for.
            self._nudged = True


async def _set_within(event: asyncio.Event, seconds: float | None) -> None:
    """Wait until the event is set, at most that long."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return


def _undisturbed(line: Line, notices: Notices) -> bool:
    """Tell whether an agent may be offered jobs, as far as the notices tell."""
    return line.credential_id not in notices.revoked_credentials and line.agent_name not in notices.maintenance


def _orders(name: str, line: Line, notices: Notices) -> list[Order]:
    orders: list[Order] = list(notices.cancels.get(name, ()))
    if line.credential_id in notices.aged_credentials:
        orders.append(Rotate())
    orders.extend(kind[name] for kind in (notices.maintenance, notices.controls) if name in kind)
    return orders


def _name_of(order: Order) -> str:
    """Return what tells an order from others to the same agent."""
    if isinstance(order, Cancel):
        return f"{order.job_id}/{order.fence}"
    if isinstance(order, Rotate):
        return order.type
    return f"maintenance {order.on}" if isinstance(order, Maintenance) else f"controls {order.revision}"


def _superseded(line: Line, session_id: str | None) -> Close:
    if session_id is not None and of_one_instance(session_id, line.session_id):
        return Close(code="session_unknown", message="a later hello has replaced this session: say hello again")
    return Close(
        code="superseded", message=f"another session of {line.agent_name!r} has taken over, or this one was ended"
    )
