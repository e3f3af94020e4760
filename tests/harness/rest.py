"""Airflow's public REST API, as far as demo, tests and bench need it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self
from urllib.parse import quote

import httpx

from harness.waiting import wait_until

FINAL_RUN_STATES = frozenset({"success", "failed"})


class RestError(RuntimeError):
    """Airflow answered with an error. The message holds method, path, status and what it said."""


@dataclass(frozen=True, slots=True)
class TaskInstance:
    """One try of one task instance."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    state: str | None
    hostname: str
    queued_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    raw: dict[str, Any] = field(repr=False, compare=False)

    @classmethod
    def parse(cls, data: dict[str, Any]) -> Self:
        """Build it from Airflow's answer."""
        return cls(
            dag_id=data["dag_id"],
            run_id=data["dag_run_id"],
            task_id=data["task_id"],
            map_index=data["map_index"],
            try_number=data["try_number"],
            state=data["state"],
            hostname=data.get("hostname") or "",
            queued_at=_time(data.get("queued_when")),
            started_at=_time(data.get("start_date")),
            ended_at=_time(data.get("end_date")),
            raw=data,
        )

    @property
    def label(self) -> str:
        """``task`` or ``task[index]``."""
        return self.task_id if self.map_index < 0 else f"{self.task_id}[{self.map_index}]"

    @property
    def seconds(self) -> float | None:
        """How long it ran."""
        if self.started_at is None or self.ended_at is None:
            return None
        return (self.ended_at - self.started_at).total_seconds()


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a task log, as Airflow's API returns it."""

    timestamp: datetime | None
    event: str
    grouped: bool
    """Whether it is inside a group: what Airflow itself says about sources, before and after a task."""
    raw: dict[str, Any] = field(repr=False, compare=False)


class AirflowApi:
    """A client with an administrator's token."""

    def __init__(self, base_url: str, *, user: str, password: str) -> None:
        self.base_url = base_url
        self._user = user
        self._password = password
        self._http = httpx.Client(base_url=base_url, timeout=30, trust_env=False)
        self._token: str | None = None

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def healthy(self) -> bool:
        """Whether the api-server answers at all."""
        try:
            return self._http.get("/api/v2/version", timeout=2).is_success
        except httpx.TransportError:
            return False

    def health(self) -> dict[str, Any]:
        """Return Airflow's own health report, by component."""
        return dict(self._json("GET", "/api/v2/monitor/health"))

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send one request.

        :raises RestError: for an answer that is an error.
        :raises httpx.TransportError: when there is no answer.
        """
        if self._token is None:
            answer = self._http.post("/auth/token", json={"username": self._user, "password": self._password})
            self._check(answer)
            self._token = answer.json()["access_token"]
        headers = {"Authorization": f"Bearer {self._token}"} | options.pop("headers", {})
        return self._check(self._http.request(method, path, headers=headers, **options))

    @staticmethod
    def _check(answer: httpx.Response) -> httpx.Response:
        if answer.is_error:
            request = answer.request
            raise RestError(f"{request.method} {request.url.path}: HTTP {answer.status_code} {answer.text[:500]}")
        return answer

    def _json(self, method: str, path: str, **options: Any) -> Any:
        return self.request(method, path, **options).json()

    # Dags and runs

    def dag_ids(self) -> set[str]:
        """Return the Dags that Airflow knows."""
        return {dag["dag_id"] for dag in self._json("GET", "/api/v2/dags", params={"limit": 100})["dags"]}

    def import_errors(self) -> list[str]:
        """Return the errors of Dag files that cannot be read."""
        errors = self._json("GET", "/api/v2/importErrors")["import_errors"]
        return [f"{error['filename']}: {error['stack_trace'].strip().splitlines()[-1]}" for error in errors]

    def wait_for_dag(self, dag_id: str, *, seconds: float = 90) -> None:
        """Wait until the dag-processor has stored a Dag.

        :raises WaitTimeoutError: with the import errors, if it does not come.
        """
        wait_until(
            lambda: dag_id in self.dag_ids(),
            seconds=seconds,
            what=f"Dag {dag_id}",
            poll_seconds=0.25,
            seen=lambda: self.import_errors() or "no import error",
        )

    def trigger_dag(self, dag_id: str, *, run_id: str | None = None, conf: dict[str, Any] | None = None) -> str:
        """Start a run and return its id."""
        body = {"logical_date": None, "conf": conf or {}} | ({"dag_run_id": run_id} if run_id else {})
        return str(self._json("POST", f"/api/v2/dags/{dag_id}/dagRuns", json=body)["dag_run_id"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        """Return the state of a run."""
        return str(self._json("GET", f"{self._run(dag_id, run_id)}")["state"])

    def wait_for_run(self, dag_id: str, run_id: str, *, seconds: float = 120) -> str:
        """Wait until a run has ended, through restarts of the api-server, and return its state.

        :raises WaitTimeoutError: with the states of its tasks, if it does not end.
        """

        def ended() -> str | None:
            try:
                state = self.run_state(dag_id, run_id)
            except httpx.TransportError:
                return None
            return state if state in FINAL_RUN_STATES else None

        return str(
            wait_until(
                ended,
                seconds=seconds,
                what=f"run {run_id} of {dag_id} to end",
                poll_seconds=0.25,
                seen=lambda: {ti.label: ti.state for ti in self.task_instances(dag_id, run_id)},
            )
        )

    # Task instances

    def task_instances(self, dag_id: str, run_id: str) -> list[TaskInstance]:
        """Return the newest try of every task instance of a run, by task and map index."""
        found: list[TaskInstance] = []
        while True:
            page = self._json(
                "GET", f"{self._run(dag_id, run_id)}/taskInstances", params={"limit": 100, "offset": len(found)}
            )
            found += [TaskInstance.parse(entry) for entry in page["task_instances"]]
            if not page["task_instances"] or len(found) >= page["total_entries"]:
                return sorted(found, key=lambda ti: (ti.task_id, ti.map_index))

    def task_instance(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> TaskInstance:
        """Return the newest try of one task instance.

        :raises RestError: when there is none.
        """
        return TaskInstance.parse(self._json("GET", self._ti(dag_id, run_id, task_id, map_index)))

    def tries(self, ti: TaskInstance) -> list[TaskInstance]:
        """Return all tries of a task instance, oldest first."""
        data = self._json("GET", f"{self._ti(ti.dag_id, ti.run_id, ti.task_id, ti.map_index)}/tries")
        return sorted(map(TaskInstance.parse, data["task_instances"]), key=lambda one: one.try_number)

    def wait_for_state(
        self, dag_id: str, run_id: str, task_id: str, state: str | set[str], *, map_index: int = -1, seconds: float = 60
    ) -> TaskInstance:
        """Wait until a task instance is in ``state``, or one of them.

        :raises WaitTimeoutError: with the state it is in.
        """
        wanted = {state} if isinstance(state, str) else state
        latest: TaskInstance | None = None

        def reached() -> TaskInstance | None:
            nonlocal latest
            try:
                latest = self.task_instance(dag_id, run_id, task_id, map_index)
            except (httpx.TransportError, RestError):
                return None
            return latest if latest.state in wanted else None

        found = wait_until(
            reached,
            seconds=seconds,
            what=f"{task_id} to be {' or '.join(sorted(wanted))}",
            seen=lambda: latest and latest.state,
        )
        assert found is not None
        return found

    def xcom(self, dag_id: str, run_id: str, task_id: str, *, key: str = "return_value", map_index: int = -1) -> Any:
        """Return an XCom value."""
        path = f"{self._run(dag_id, run_id)}/taskInstances/{quote(task_id)}/xcomEntries/{quote(key)}"
        return self._json("GET", path, params={"map_index": map_index, "deserialize": True})["value"]

    # Logs

    def log_stream(self, ti: TaskInstance, *, try_number: int | None = None) -> bytes:
        """Return the log of one try as Airflow streams it: one JSON object per line."""
        answer = self._log(ti, try_number, "application/x-ndjson")
        return answer.content

    def log(self, ti: TaskInstance, *, try_number: int | None = None) -> list[LogLine]:
        """Return the log of one try, without the lines that only open or close a group."""
        lines, grouped = [], False
        for entry in self._log(ti, try_number, "application/json").json()["content"]:
            data = entry if isinstance(entry, dict) else {"event": str(entry)}
            event = str(data.get("event", ""))
            if event.startswith("::group::"):
                grouped = True
            elif event.startswith("::endgroup::"):
                grouped = False
            else:
                lines.append(LogLine(_time(data.get("timestamp")), event, grouped=grouped, raw=data))
        return lines

    def _log(self, ti: TaskInstance, try_number: int | None, accept: str) -> httpx.Response:
        return self.request(
            "GET",
            f"{self._run(ti.dag_id, ti.run_id)}/taskInstances/{quote(ti.task_id)}/logs/{try_number or ti.try_number}",
            params={"map_index": ti.map_index, "full_content": True},
            headers={"Accept": accept},
        )

    @staticmethod
    def _run(dag_id: str, run_id: str) -> str:
        return f"/api/v2/dags/{quote(dag_id)}/dagRuns/{quote(run_id)}"

    def _ti(self, dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
        path = f"{self._run(dag_id, run_id)}/taskInstances/{quote(task_id)}"
        return path if map_index < 0 else f"{path}/{map_index}"
