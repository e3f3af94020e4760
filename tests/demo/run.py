"""Follow one run of the demo's Dag, from the outside: everything shown comes from Airflow's API."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from harness.rest import FINAL_RUN_STATES, RestError, TaskInstance

if TYPE_CHECKING:
    from collections.abc import Callable

    from demo.screen import Screen
    from harness.rest import AirflowApi, LogLine

DAG_ID = "edge_demo"
SLOW_TASK = "slow"
FLAKY_TASK = "flaky"
RUN_SECONDS = 300.0
FIRST_START_SECONDS = 90.0
POLL_SECONDS = 0.2
EXPECTED_TRIES = 11
"""Five mapped tasks, five others, and one second try."""


class DemoError(Exception):
    """The demo failed. The message says why; ``log`` is the file that tells more."""

    def __init__(self, reason: str, log: Path | None = None) -> None:
        self.log = log
        super().__init__(reason)


class RunWatch:
    """Shows a run as it goes on.

    :param check: raises when one of the processes has ended.
    :param agent_log: named when no task ever starts.
    """

    def __init__(self, api: AirflowApi, screen: Screen, *, check: Callable[[], None], agent_log: Path) -> None:
        self._api = api
        self._screen = screen
        self._check = check
        self._agent_log = agent_log
        self._seen: dict[tuple[str, int], tuple[int, str | None]] = {}
        self._delays: dict[int, float] = {}
        """Slow task's line number to the seconds until it was read through Airflow, while the task was running."""

    def follow(self, run_id: str) -> str:
        """Print every change until the run has ended, and return its state.

        :raises DemoError: when it takes too long.
        """
        began = time.monotonic()
        while True:
            self._check()
            state, instances = self._look(run_id)
            self._show_changes(instances)
            self._watch_slow_log(instances)
            if state in FINAL_RUN_STATES:
                return state
            waited = time.monotonic() - began
            if waited > FIRST_START_SECONDS and instances and not any(ti.started_at for ti in instances):
                raise DemoError(f"no task was started within {FIRST_START_SECONDS:g} s", self._agent_log)
            if waited > RUN_SECONDS:
                states = ", ".join(f"{ti.label} {ti.state}" for ti in instances if ti.state != "success")
                raise DemoError(f"the run did not end within {RUN_SECONDS:g} s ({states})", self._agent_log)
            time.sleep(POLL_SECONDS)

    def _look(self, run_id: str) -> tuple[str, list[TaskInstance]]:
        try:
            # In this order: a run seen as ended has all its tasks in their last state.
            state = self._api.run_state(DAG_ID, run_id)
            return state, self._api.task_instances(DAG_ID, run_id)
        except httpx.TransportError as error:
            raise DemoError(f"Airflow's API stopped answering: {error}") from None

    def _show_changes(self, instances: list[TaskInstance]) -> None:
        for ti in instances:
            key, now = (ti.task_id, ti.map_index), (ti.try_number, ti.state)
            if self._seen.get(key) == now or ti.state in {None, "scheduled"}:
                continue
            self._seen[key] = now
            place = f" on {ti.hostname}" if ti.state == "running" and ti.hostname else ""
            self._screen.progress(f"{ti.label:<16} try {ti.try_number}  {self._screen.state(ti.state)}{place}")

    def _watch_slow_log(self, instances: list[TaskInstance]) -> None:
        slow = next((ti for ti in instances if ti.task_id == SLOW_TASK and ti.state == "running"), None)
        if slow is None:
            return
        try:
            lines = self._api.log(slow)
        except (RestError, httpx.TransportError):
            # The task may have just ended or not have written anything; the check at the end decides.
            return
        now = datetime.now(UTC)
        for line in lines:
            found = re.fullmatch(r"slow line (\d+) of \d+", line.event)
            if found is None or line.timestamp is None or int(found[1]) in self._delays:
                continue
            delay = (now - line.timestamp).total_seconds()
            self._delays[int(found[1])] = delay
            if len(self._delays) in (1, 5):
                self._screen.progress(
                    f"log of a running task: '{line.event}' was visible in Airflow after {delay:.1f} s"
                )

    def verdict(self, run_id: str, state: str) -> None:
        """Check that everything happened that the demo is there to show.

        :raises DemoError: naming the first thing that did not.
        """
        tries = self.tries(run_id)
        if state != "success":
            failed = [f"{ti.label} is {ti.state}" for ti in tries if ti.state in {"failed", "upstream_failed"}]
            raise DemoError(f"the run ended as {state}: {', '.join(failed) or 'no task failed'}", self._agent_log)
        if len(tries) != EXPECTED_TRIES:
            raise DemoError(f"{EXPECTED_TRIES} tries should have been made, Airflow knows {len(tries)}")
        flaky = [ti.state for ti in tries if ti.task_id == FLAKY_TASK]
        if flaky != ["failed", "success"]:
            raise DemoError(f"the task that fails once ended as {flaky}, it should fail and then succeed")
        if not self._delays:
            raise DemoError("the log of the slow task was not visible in Airflow while it ran", self._agent_log)

    def tries(self, run_id: str) -> list[TaskInstance]:
        """Return every try of every task, in the order of their starts."""
        found = [one for ti in self._api.task_instances(DAG_ID, run_id) for one in self._api.tries(ti)]
        last = datetime.max.replace(tzinfo=UTC)
        return sorted(found, key=lambda ti: (ti.started_at or last, ti.label, ti.try_number))

    def show(self, run_id: str) -> None:
        """Print the table of all tries.

        :raises DemoError: when the log of one of them cannot be read.
        """
        rows = []
        for ti in self.tries(run_id):
            index = "" if ti.map_index < 0 else str(ti.map_index)
            seconds = "" if ti.seconds is None else f"{ti.seconds:.1f}"
            rows.append(
                (ti.task_id, index, str(ti.try_number), str(ti.state), ti.hostname, seconds, self._last_line(ti))
            )
        header = ("task", "map", "try", "state", "host", "seconds", "last log line, from Airflow's API")
        self._screen.table(header, rows, state_column=3)
        worst = max(self._delays.values())
        self._screen.line(
            f"{len(self._delays)} log lines of the running slow task were read through Airflow, each at most "
            f"{worst:.1f} s after it was written."
        )

    def _last_line(self, ti: TaskInstance) -> str:
        lines = [line for line in self._api.log(ti) if not line.grouped]
        if not lines:
            raise DemoError(f"the log of {ti.label}, try {ti.try_number}, is empty in Airflow", self._agent_log)
        return describe(lines[-1])

    def own_lines(self, run_id: str, task_id: str) -> list[str]:
        """Return what a task itself logged."""
        return [line.event for line in self._api.log(self._api.task_instance(DAG_ID, run_id, task_id))]


def describe(line: LogLine) -> str:
    """Return a log line as text, with the error if it holds one."""
    details = line.raw.get("error_detail")
    if isinstance(details, list) and details:
        return f"{line.event}: {details[0].get('exc_type')}: {details[0].get('exc_value')}"
    return line.event
