"""One run of the Dag on real agents behind the proxy, for a fault to happen to."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from faults.proxy import FaultProxy
from faults.world import ENVIRONMENT, World
from harness.agent import AgentProcess
from harness.waiting import wait_until

_KEEP_SECONDS = 0.03


class KeptLogs:
    """Keeps every task log that an agent has on disk, by a descriptor of the file, beyond its delivery.

    Not by a second link: the agent does not read a log that has another name somewhere.
    """

    def __init__(self, state_dir: Path) -> None:
        self._jobs = state_dir / "runner" / "jobs"
        self._kept: dict[str, list[int]] = {}
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kept-logs", daemon=True)
        self._seen: set[tuple[str, int]] = set()
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._leaving.set()
        self._thread.join()

    def read(self, job_id: str) -> bytes | None:
        """Return the log of a job as its last dispatch left it; ``None``: it had none."""
        found = self.descriptor(job_id)
        return None if found is None else os.pread(found, os.fstat(found).st_size, 0)

    def descriptor(self, job_id: str) -> int | None:
        """Return the open file of that log."""
        found = self._kept.get(job_id)
        return found[-1] if found else None

    def _run(self) -> None:
        while not self._leaving.wait(_KEEP_SECONDS):
            with contextlib.suppress(OSError):
                for job in os.scandir(self._jobs):
                    self._keep(Path(job.path))

    def _keep(self, job: Path) -> None:
        log = job / "task.log"
        with contextlib.suppress(OSError):
            key = (job.name, log.stat().st_ino)
            if key not in self._seen:
                self._kept.setdefault(job.name, []).append(os.open(log, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
                self._seen.add(key)


class Scene:
    """Agents behind a proxy, and one run of the Dag.

    :param through: whether tasks reach Airflow through the proxy as well.
    :param variables: environment of the agents' daemons.
    :param tasks_too: whether it is the environment of their tasks, too.
    :param state_dir: where the first agent keeps its state, if not below ``root``.
    """

    def __init__(
        self,
        world: World,
        root: Path,
        *,
        seed: str,
        carrier: str | None,
        agents: int = 1,
        through: bool = False,
        variables: Mapping[str, str] | None = None,
        tasks_too: bool = True,
        state_dir: Path | None = None,
    ) -> None:
        self.world = world
        self.root = root
        self.random = random.Random(seed)
        self.notes_dir = root / "outside"
        self.notes_dir.mkdir(parents=True)
        self.proxy = FaultProxy(world.site.port, seed=self.random.randrange(2**32), plain=True)
        self.agents: list[AgentProcess] = []
        self.kept: list[KeptLogs] = []
        self.run_id = ""
        self._settings: dict[str, Any] = {
            "execution_api": world.execution_api,
            "execution_api_url": f"{world.site.url}/execution/",
            "runner": {
                "idle_seconds": 60,
                "pass_env": ["EDGE_HARNESS_MARKER", *(variables or {} if tasks_too else {})],
            },
        }
        if carrier is not None:
            self._settings["carrier"] = carrier
        self._through = through
        self._variables = variables
        self._count = agents
        self._state_dir = state_dir

    def __enter__(self) -> Self:
        self.proxy.__enter__()
        if self._through:
            self._settings["execution_api_url"] = f"{self.proxy.url}/execution/"
        try:
            for number in range(1, self._count + 1):
                extra = {"state_dir": str(self._state_dir)} if self._state_dir and number == 1 else {}
                agent = self.make_agent(self.world.name(number), self.root / f"agent-{number}", extra)
                if self._state_dir and number == 1:
                    agent.state_dir = self._state_dir
                self.agents.append(agent)
                agent.start()
                self.kept.append(KeptLogs(agent.state_dir))
            for agent in self.agents:
                agent.wait_for_log("connected", seconds=self.seconds(40))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for kept in self.kept:
            kept.stop()
        for agent in self.agents:
            agent.close()
        self.proxy.__exit__(kind, value, trace)

    def make_agent(
        self, name: str, root: Path, settings: Mapping[str, Any] | None = None, credential: str | None = None
    ) -> AgentProcess:
        """Prepare an agent that reaches the server through the proxy, and does not run yet.

        :param credential: another agent's; otherwise it is enrolled, in place of whoever had the name before.
        """
        return AgentProcess(
            root,
            keeper=self.world.keeper,
            environment=ENVIRONMENT,
            runtime=ENVIRONMENT,
            server_url=self.proxy.url,
            token=credential or self.world.site.create_join_token(name),
            name=name,
            bundles={"faults": self.world.dags},
            settings=self._settings | dict(settings or {}),
            variables=self._variables,
        )

    def add_agent(self) -> AgentProcess:
        """Start one more agent, which reaches the server directly."""
        number = len(self.agents) + 1
        agent = self.make_agent(
            self.world.name(number), self.root / f"agent-{number}", {"server_url": self.world.site.url}
        )
        self.agents.append(agent)
        agent.start()
        self.kept.append(KeptLogs(agent.state_dir))
        agent.wait_for_log("connected", seconds=self.seconds(40))
        return agent

    # Time

    def seconds(self, seconds: float) -> float:
        """Return a deadline for this machine."""
        return seconds * self.world.scale

    def pause(self, low: float, high: float) -> None:
        """Let the work go on for a random time: that is when the next fault happens."""
        time.sleep(self.random.uniform(low, high))

    # The Dag's run

    def begin(self) -> None:
        """Start the Dag, and wait until a body runs."""
        self.run_id = self.world.trigger(self.notes_dir)
        # Less than a poll takes: an agent that is only found by its next one is a fault, too.
        wait_until(self.notes, seconds=self.seconds(20), what="the first task body")

    def begin_another(self) -> None:
        """Start the Dag once more, with another folder outside."""
        self.notes_dir = self.notes_dir.with_name(f"{self.notes_dir.name}-next")
        self.notes_dir.mkdir()
        self.begin()

    def go(self) -> None:
        """Let the slow task end."""
        (self.notes_dir / "go").touch()

    def notes(self) -> Counter[str]:
        """Count what the task bodies wrote, without their process ids."""
        path = self.notes_dir / "notes"
        if not path.exists():
            return Counter()
        return Counter(line.rsplit(" ", 1)[0] for line in path.read_text().splitlines())

    def progress(self) -> tuple[Any, ...]:
        """Return what changes whenever the server learns something of this run's jobs."""
        return self.world.rows(
            "SELECT count(*), sum(log_next_offset), sum(fence), count(accepted_at), count(started_at), "
            "count(finished_at) FROM edge_agent_job WHERE run_id = :run",
            {"run": self.run_id},
        )[0]

    def jobs_dispatched(self) -> int:
        """Return how many jobs Airflow has handed over for this run."""
        return int(self.progress()[0])
