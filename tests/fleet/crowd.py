"""All agents of the simulation: who is connected, what their tasks are like, and what was counted."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow_edge_agent.adapters.credential import Credential
from airflow_edge_agent.adapters.keys import new_private_key, public_key
from airflow_edge_agent.protocol import API_PREFIX, CHANNEL_PATH
from fleet.agent import SimulatedAgent
from fleet.wheel import Wheel

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from fleet.execution import ExecutionCalls
    from fleet.line import ServerLine


@dataclass
class Counts:
    """What happened since the last :meth:`Crowd.reset`."""

    messages_in: int = 0
    messages_out: int = 0
    started: int = 0
    delivered: int = 0
    """Jobs whose result and log the server has acknowledged."""
    killed: int = 0
    back: Counter[int] = field(default_factory=Counter)
    """Sessions opened, by the second of the monotonic clock."""
    dialled: Counter[int] = field(default_factory=Counter)
    """Connections tried, likewise."""
    lost: Counter[int] = field(default_factory=Counter)
    """Connections that ended under a session, by close code."""
    refused: Counter[int] = field(default_factory=Counter)
    """Connections that brought no session, by HTTP status; 0: none."""
    closes: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def make_keys(names: Sequence[str]) -> dict[str, bytes]:
    """Make a private key for each."""
    return {name: new_private_key() for name in names}


def public_half(private_key: bytes) -> str:
    """Return the public key, in hexadecimal."""
    return public_key(private_key).hex()


class Crowd:
    """Simulated agents of one server. Needs a running event loop.

    :param server_url: of the api-server.
    :param credentials: of each agent, by name.
    :param seed: of everything that is left to chance.
    :param relays: whether agents relay the Execution API to their tasks.
    """

    def __init__(
        self,
        server_url: str,
        credentials: dict[str, Credential],
        *,
        concurrency: int,
        seed: int,
        relays: bool = False,
    ) -> None:
        base = f"{server_url}{API_PREFIX}{CHANNEL_PATH}"
        self.url = base.replace("http", "ws", 1)
        place = urlsplit(base)
        self._host, self._port = place.hostname or "", place.port or 80
        self.random = random.Random(seed)
        self.wheel = Wheel()
        self.counts = Counts()
        self.job_seconds = 0.0
        self.job_log_bytes = 0
        self.relays = relays
        self.execution: ExecutionCalls | None = None
        """Where tasks tell that they run and succeed; ``None``: they tell nobody."""
        self._tasks: set[asyncio.Task[None]] = set()
        line = b'{"timestamp":"2026-01-01T00:00:00Z","level":"info","event":"line of a chatty task","logger":"task"}\n'
        self._log = line * (1 + 2**18 // len(line)) * 2
        self.agents = [
            SimulatedAgent(self, name, credential, concurrency=concurrency) for name, credential in credentials.items()
        ]

    @property
    def connected(self) -> int:
        """How many agents have a session."""
        return sum(agent.core.connected for agent in self.agents)

    def reset(self) -> Counts:
        """Begin to count anew; return what was counted."""
        counts, self.counts = self.counts, Counts()
        return counts

    async def connect(self, most: int, *, per_second: float, patience: float = 120) -> float:
        """Connect agents until so many are; return after how many seconds they were.

        :raises TimeoutError: they are not.
        """
        began = time.monotonic()
        waiting = [agent for agent in self.agents if not agent.wanted][: max(0, most - self.connected)]
        for number, agent in enumerate(waiting):
            agent.wanted = True
            self.wheel.after(number / per_second, agent.connect)
        await self.until(lambda: self.connected >= most, len(waiting) / per_second + patience)
        return time.monotonic() - began

    async def leave(self) -> None:
        """Close all connections."""
        for agent in self.agents:
            agent.leave()
        await self.until(lambda: self.connected == 0, 60)

    async def until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait for a condition.

        :raises TimeoutError: it did not come true.
        """
        async with asyncio.timeout(seconds):
            while True:
                if condition():
                    return
                await asyncio.sleep(0.05)

    def dial(self, line: ServerLine) -> None:
        """Connect a line to the server."""
        self.counts.dialled[int(time.monotonic())] += 1
        self.spawn(self._dial(line))

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Let something go on by itself."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _dial(self, line: ServerLine) -> None:
        try:
            async with asyncio.timeout(10):
                await asyncio.get_running_loop().create_connection(lambda: line, self._host, self._port)
        except (OSError, TimeoutError) as error:
            line.connection_lost(error)

    def note_back(self) -> None:
        """Note that a session was opened."""
        self.counts.back[int(time.monotonic())] += 1

    def note_lost(self, code: int) -> None:
        """Note that a session's connection has ended."""
        self.counts.lost[code] += 1

    def note_refused(self, code: int) -> None:
        """Note that a connection brought no session."""
        self.counts.refused[code] += 1

    def log_piece(self, offset: int, length: int) -> bytes:
        """Return a piece of a task's log."""
        start = offset % (len(self._log) // 2)
        return self._log[start : start + length] if start + length <= len(self._log) else self._log[:length]

    def close(self) -> None:
        """End it all at once."""
        self.wheel.stop()
        for agent in self.agents:
            agent.leave()


def credential(credential_id: str, private_key: bytes) -> Credential:
    """Put a credential together from what the enrolment gave and what was made here."""
    return Credential(credential_id, private_key)


RESULTS = Path(__file__).resolve().parents[2] / ".bench" / "fleet"


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the event loop of a simulation: the one that its server has, where that is installed."""
    try:
        import uvloop  # noqa: PLC0415  a part of the api-server's environment, and of others perhaps not
    except ImportError:
        return None
    return uvloop.new_event_loop
