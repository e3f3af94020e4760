"""Watches one side through an outage: what Airflow says, and what really is."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from harness.rest import RestError, TaskInstance
from outage.sides import DAG_ID, Side


@dataclass(frozen=True, slots=True)
class Change:
    """Something that became different."""

    seconds: float
    """After the cut."""
    what: str
    before: str
    after: str


@dataclass(slots=True)
class Body:
    """One run of a task's body. Times are seconds of the wall clock."""

    number: int
    try_number: int
    pid: int
    began_at: float
    process: psutil.Process | None = None
    ended_at: float | None = None
    """When it came to its end by itself."""
    gone_at: float | None = None
    """When its process was first missed."""

    @property
    def left_at(self) -> float | None:
        """When it was over, in whichever way."""
        return self.ended_at if self.ended_at is not None else self.gone_at


class Watch:
    """Looks every now and then, in a thread of its own, until it is stopped.

    :param folder: where the bodies write their notes.
    """

    def __init__(self, side: Side, run_id: str, folder: Path) -> None:
        self.changes: list[Change] = []
        self.bodies: list[Body] = []
        self.instances: dict[int, TaskInstance] = {}
        """The newest try of each task, as Airflow last said."""
        self.poll_seconds = 0.5
        self.cut_at = time.time()
        self.fault: str | None = None
        """Why it is not watched any more."""
        self._side = side
        self._run_id = run_id
        self._folder = folder
        self._read_bytes = 0
        self._seen: dict[str, str] = {}
        self._worker_asked_at = 0.0
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch-{side.label}", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, after one more look."""
        self._leaving.set()
        self._thread.join()

    def state(self, number: int) -> str:
        """Return the state of a task, as Airflow last said."""
        found = self.instances.get(number)
        return str(found.state) if found else "none"

    def succeeded_at_once(self, number: int) -> bool:
        """Whether a task is a success in its first try, as Airflow last said."""
        found = self.instances.get(number)
        return found is not None and (found.state, found.try_number) == ("success", 1)

    def bodies_of(self, number: int) -> list[Body]:
        """Return the runs of a task's body, oldest first."""
        return [body for body in self.bodies if body.number == number]

    def overlapping(self) -> int:
        """Return how many tasks had two bodies at the same time."""
        return sum(
            any(first.left_at is None or second.began_at < first.left_at for first, second in itertools.pairwise(runs))
            for runs in map(self.bodies_of, self.instances)
        )

    def _run(self) -> None:
        try:
            while not self._leaving.wait(self.poll_seconds):
                self._look()
            self._look()
        except Exception as error:  # noqa: BLE001 -- whoever waits for what is seen must hear of it
            self.fault = repr(error)

    def _look(self) -> None:
        self._read_notes()
        for body in self.bodies:
            if body.left_at is None and not _lives(body.process):
                self._read_notes()  # it may have ended well since
                if body.ended_at is None:
                    body.gone_at = time.time()
                    self._note(f"body of task {body.number}, try {body.try_number}", "gone before its end")
        worker = self._side.worker
        assert worker is not None
        self._note("worker's process", "running" if worker.running else f"ended with {worker.exit_code}")
        try:
            for instance in self._side.site.api.task_instances(DAG_ID, self._run_id):
                self.instances[instance.map_index] = instance
                self._note(f"task {instance.map_index}", f"{instance.state}, try {instance.try_number}")
        except (httpx.TransportError, RestError):
            return  # the central Airflow is busy: the next look will tell
        if time.monotonic() >= self._worker_asked_at + 1:
            self._worker_asked_at = time.monotonic()
            self._note("worker in Airflow", self._side.worker_state())

    def _note(self, what: str, now: str) -> None:
        before = self._seen.get(what, "")
        if now != before:
            self._seen[what] = now
            self.changes.append(Change(time.time() - self.cut_at, what, before, now))

    def _read_notes(self) -> None:
        for what, number, try_number, pid, at in self._new_notes():
            if what == "began":
                body = Body(number, try_number, pid, at, _process(pid))
                self.bodies.append(body)
                self._note(f"body of task {number}, try {try_number}", "running")
            else:
                body = next(body for body in self.bodies if (body.number, body.pid) == (number, pid))
                body.ended_at = at
                self._note(f"body of task {number}, try {try_number}", "ended")

    def _new_notes(self) -> Iterator[tuple[str, int, int, int, float]]:
        path = self._folder / "notes"
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._read_bytes)
            data = file.read()
        self._read_bytes += len(data)
        for line in data.decode().splitlines():
            what, number, try_number, pid, at = line.split()
            yield what, int(number), int(try_number), int(pid), float(at)


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _lives(process: psutil.Process | None) -> bool:
    try:
        return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
