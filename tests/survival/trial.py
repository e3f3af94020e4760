"""One agent, the tasks it is sent, and what is true of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

import airflow_edge_agent
from airflow_edge_agent.ctl.client import Client
from faults.scene import Scene
from faults.world import World
from harness.agent import AgentProcess
from harness.waiting import wait_until

_CHUNK = 4 * 1024 * 1024


@dataclass
class Row:
    """One row of the matrix: what came of one fault."""

    fault: str
    outcome: str = ""
    """What Airflow and the server say of the task."""
    log: str = ""
    reattach_seconds: float | None = None
    """From the new daemon's start until it has the running task again."""
    truth_seconds: float | None = None
    """From the fault until the server knows what became of the task it concerns."""
    left: int | None = None
    """Processes of ended tasks that are still there."""
    remark: str = ""
    seconds: float = 0.0
    skipped: str | None = None
    findings: list[str] = field(default_factory=list)
    """What is not as it must be, a line each."""

    def expect(self, truth: object, what: str) -> None:
        """Note a violation, unless it is true."""
        if not truth:
            self.findings.append(what)

    def within(self, seconds: float, limit: float, what: str) -> float:
        """Note a violation if something took longer than it may; return how long it took."""
        self.expect(seconds <= limit, f"{what} took {seconds:.2f} s, at most {limit:g} s")
        return seconds


class Trial(Scene):
    """An agent that reaches the server directly.

    :param copy: whether it runs from a copy of the code, which can then be upgraded.
    """

    def __init__(
        self,
        world: World,
        root: Path,
        *,
        settings: Mapping[str, Any] | None = None,
        state_dir: Path | None = None,
        copy: bool = False,
    ) -> None:
        self.code = root / "code" / "airflow_edge_agent"
        if copy:
            source = Path(airflow_edge_agent.__file__).parent
            shutil.copytree(source, self.code, ignore=shutil.ignore_patterns("__pycache__"))
        super().__init__(
            world,
            root,
            seed="survival",
            carrier=None,
            variables={"PYTHONPATH": str(self.code.parent)} if copy else None,
            tasks_too=False,
            state_dir=state_dir,
        )
        self._settings |= {"server_url": world.site.url, "drain": {"kill_grace_seconds": 2}} | dict(settings or {})
        self._tasks = 0

    @property
    def agent(self) -> AgentProcess:
        """The agent."""
        return self.agents[0]

    def control(self) -> Client:
        """Return a client of the agent's control socket."""
        return Client(Path(self.agent.settings["runtime_dir"]) / "control.sock")

    def task(self, kind: str, **conf: Any) -> Task:
        """Have Airflow send a task, and wait until its body runs."""
        self._tasks += 1
        task = Task(self, f"{self._tasks}-{kind}", "trial", {"kind": kind, **conf})
        wait_until(task.notes, seconds=self.seconds(60), what=f"the body of {kind}", seen=lambda: self.agent.tail(3))
        return task

    def crowd(self, count: int) -> Task:
        """Have Airflow send many tasks that wait, and wait until all of them run."""
        crowd = Task(self, "crowd", "crowd", {"count": count})
        wait_until(
            lambda: len(crowd.notes()) == count,
            seconds=self.seconds(60 + 2 * count),
            what="all tasks to run",
            poll_seconds=0.5,
            seen=lambda: f"{len(crowd.notes())} run; {self.agent.tail(3)}",
        )
        return crowd

    def upgrade(self, version: str) -> None:
        """Replace the code that the agent runs from, file by file, as a package manager does."""
        for path in self.code.rglob("*.py"):
            new = path.with_name(f".{path.name}.new")
            text = path.read_text()
            if path == self.code / "__init__.py":
                text = text.replace(airflow_edge_agent.__version__, version)
            new.write_text(text)
            new.rename(path)


class Task:
    """One run of a Dag, and the folder in which its tasks tell what really happened."""

    def __init__(self, trial: Trial, name: str, dag_id: str, conf: Mapping[str, Any]) -> None:
        self.trial = trial
        self.dag_id = dag_id
        self.folder = trial.notes_dir / name
        self.folder.mkdir()
        self.run_id = trial.world.site.api.trigger_dag(dag_id, conf={"dir": str(self.folder), **conf})

    # What really happened

    def notes(self, what: str = "") -> list[psutil.Process | None]:
        """Return the processes that noted something; ``None`` for one that has gone."""
        path = self.folder / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [_process(*map(int, line.split()[-2:])) for line in lines if line.startswith(what)]

    def process(self) -> psutil.Process:
        """Return the task's process, which must be alive."""
        (process,) = self.notes("began")
        assert process is not None, "the task has gone"
        return process

    def living(self) -> list[psutil.Process]:
        """Return the processes of it that are there."""
        return [process for process in self.notes() if process is not None]

    def go(self) -> float:
        """Let it end; return the time of that."""
        (self.folder / "go").touch()
        return time.monotonic()

    def ended_well(self) -> bool:
        """Whether its body came to its end."""
        return bool(self.notes("ended"))

    # What is said of it

    def fail(self) -> float:
        """Mark it as failed in Airflow, which is to end it; return the time of that."""
        self.trial.world.site.api.request(
            "PATCH",
            f"/api/v2/dags/{self.dag_id}/dagRuns/{self.run_id}/taskInstances/body",
            json={"new_state": "failed"},
        )
        return time.monotonic()

    def jobs(self) -> list[tuple[Any, ...]]:
        """Return id, state, outcome and detail of its jobs, as the server has them."""
        return self.trial.world.rows(
            "SELECT id, state, outcome, detail, log_bytes FROM edge_agent_job WHERE run_id = :run ORDER BY queued_at",
            {"run": self.run_id},
        )

    def wait_told(self, since: float, seconds: float = 60) -> float:
        """Wait until the server knows of its end; return how long that took."""
        wait_until(
            lambda: all(job[1] == "finished" for job in self.jobs()),
            seconds=self.trial.seconds(seconds),
            what="the server to know of the end",
            poll_seconds=0.02,
            seen=lambda: f"{self.jobs()}; {self.trial.agent.tail(3)}",
        )
        return time.monotonic() - since

    def wait_gone(self, since: float, seconds: float = 30) -> float:
        """Wait until no process of it is left; return how long that took."""
        wait_until(
            lambda: not self.living(),
            seconds=self.trial.seconds(seconds),
            what="its processes to end",
            poll_seconds=0.02,
            seen=self.living,
        )
        return time.monotonic() - since

    def outcome(self) -> tuple[str, str, str]:
        """Return Airflow's final state, and outcome and detail of its (last) job."""
        state = self.trial.world.site.api.wait_for_run(self.dag_id, self.run_id, seconds=self.trial.seconds(90))
        *_, (_, _, outcome, detail, _) = self.jobs()
        return state, str(outcome), str(detail or "")

    # Its log

    def log_fault(self) -> str | None:
        """Compare the log at the server with the file that the agent had, byte by byte; ``None``: they are the same."""
        (job_id, *_, told) = self.jobs()[-1]
        wait_until(
            lambda: (
                self.trial.world.rows("SELECT log_next_offset FROM edge_agent_job WHERE id = :id", {"id": job_id})[0][0]
                == (told or 0)
            ),
            seconds=self.trial.seconds(120),
            what="the whole log",
        )
        descriptor = self.trial.kept[0].descriptor(job_id)
        if descriptor is None:
            return "the agent never had one"
        here, size_here = _digest(_file(descriptor))
        there, size_there = _digest(self.stored())
        return None if here == there else f"{size_here} bytes at the agent, {size_there} at the server"

    def stored(self) -> Iterator[bytes]:
        """Iterate over the pieces of its log at the server."""
        job_id, offset = self.jobs()[-1][0], -1
        while True:
            rows = self.trial.world.rows(
                'SELECT "offset", data FROM edge_agent_log WHERE job_id = :id AND "offset" > :offset '
                'ORDER BY "offset" LIMIT 16',
                {"id": job_id, "offset": offset},
            )
            if not rows:
                return
            offset = rows[-1][0]
            yield from (bytes(data) for _, data in rows)

    def log_bytes(self) -> int:
        """Return the length of its log at the server."""
        return sum(map(len, self.stored()))

    def events(self) -> Iterator[str]:
        """Iterate over what its log at the server says."""
        rest = b""
        for piece in self.stored():
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield str(json.loads(line).get("event", ""))

    def shown_fault(self) -> str | None:
        """Compare the lines that the task says to have written with those in its log; ``None``: they are the same."""
        shown, written = self._lines()
        return None if shown == written else f"the task wrote {len(written)} lines, its log has {len(shown)} or others"

    def lines_missing(self) -> int:
        """Return how many of the last lines that a killed task has written did not come into its log.

        :raises AssertionError: not only the last ones are missing.
        """
        shown, written = self._lines()
        assert shown[: len(written)] == written[: len(shown)], "there is a hole in the log"
        return len(written) - len(shown)

    def _lines(self) -> tuple[list[str], list[str]]:
        shown = [event.rstrip() for event in self.events() if event.startswith("line ")]
        text = (self.folder / "lines").read_text()
        return shown, text[: text.rfind("\n") + 1].splitlines()


def _process(pid: int, started: int) -> psutil.Process | None:
    """Return a process by pid and start time, which name one for good."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return psutil.Process(pid) if int(stat[19]) == started and stat[0] not in "ZX" else None
    except (OSError, psutil.NoSuchProcess):
        return None


def _file(descriptor: int) -> Iterator[bytes]:
    offset = 0
    while piece := os.pread(descriptor, _CHUNK, offset):
        offset += len(piece)
        yield piece


def _digest(pieces: Iterator[bytes]) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    for piece in pieces:
        digest.update(piece)
        size += len(piece)
    return digest.hexdigest(), size
