"""Simulated workers of ``apache-airflow-providers-edge3``: the calls and the pace of its worker, from its source.

A call is a connection of its own with a token of its own, as its client has it. Each worker sends its state every 30 s
and whenever its number of jobs changes, asks for a job every 5 s, and asks again at once after it got one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
import time
import uuid
from typing import Any
from urllib.parse import urlsplit

import jwt

HEARTBEAT_SECONDS = 30.0
POLL_SECONDS = 5.0
TRIES = 10
LONGEST_PAUSE_SECONDS = 90.0
VERSION = "5.1.0"
_AGAIN = frozenset({0, 429, 500, 502, 503, 504})
_PREFIX = "/edge_worker/v1/"


class PeerWorkers:
    """Simulated workers of one server. Needs a running event loop."""

    def __init__(self, server_url: str, secret: str, airflow_version: str, count: int, *, seed: int) -> None:
        place = urlsplit(server_url)
        self._host, self._port = place.hostname or "", place.port or 80
        self._secret = secret
        self._airflow_version = airflow_version
        self._random = random.Random(seed)
        self._names = [f"peer-{number:05}" for number in range(count)]
        self._tasks: set[asyncio.Task[None]] = set()
        self.job_seconds = 1.0
        self.requests = 0
        self.repeated = 0
        """Calls that were made again, because the server failed at them."""
        self.errors: list[str] = []
        self.call_seconds: list[float] = []
        self.begun: dict[int, float] = {}
        """When the worker had a job in hands (seconds since 1970), by the task's map index."""

    def start(self) -> None:
        """Start the workers, spread over a poll's length."""
        for name in self._names:
            self._spawn(self._work(name, self._random.random() * POLL_SECONDS))

    async def stop(self) -> None:
        """End them at once."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, name: str, pause: float) -> None:
        await asyncio.sleep(pause)
        jobs: set[str] = set()
        await self._state(name, "POST", "starting", jobs)
        beat, told = time.monotonic(), -1
        while True:
            if told != len(jobs) or time.monotonic() - beat > HEARTBEAT_SECONDS:
                beat, told = time.monotonic(), len(jobs)
                await self._state(name, "PATCH", "running" if jobs else "idle", jobs)
            self._spawn(self._fetch(name, jobs))
            before = len(jobs)
            for _ in range(int(POLL_SECONDS * 10)):
                await asyncio.sleep(0.1)
                if len(jobs) < before:
                    break

    async def _state(self, name: str, method: str, state: str, jobs: set[str]) -> None:
        info = {
            "status": logging.INFO,
            "airflow_version": self._airflow_version,
            "edge_provider_version": VERSION,
            "python_version": sys.version,
            "concurrency": 8,
            "free_concurrency": 8 - len(jobs),
        }
        body = {"state": state, "jobs_active": len(jobs), "queues": ["default"], "sysinfo": info}
        await self._call(method, f"worker/{name}", body)

    async def _fetch(self, name: str, jobs: set[str]) -> None:
        if len(jobs) >= 8:
            return
        body = {"queues": ["default"], "free_concurrency": 8 - len(jobs), "supports_task_instance_uuid": True}
        job = await self._call("POST", f"jobs/fetch/{name}", body)
        if not job:
            return
        self.begun[job["map_index"]] = time.time()
        key = uuid.uuid4().hex
        jobs.add(key)
        place = "/".join(str(job[part]) for part in ("dag_id", "task_id", "run_id", "try_number", "map_index"))
        told = {"task_instance_id": job["task_instance_id"]} if job.get("task_instance_id") else None
        await self._call("PATCH", f"jobs/state/{place}/running", told)
        self._spawn(self._fetch(name, jobs))
        await asyncio.sleep(self.job_seconds)
        await self._call("PATCH", f"jobs/state/{place}/success", told)
        jobs.discard(key)

    async def _call(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        """Call, and again as its client does where that may help; note as error what comes to nothing."""
        what = f"{method} {path.split('/', maxsplit=1)[0]}"
        for attempt in range(TRIES):
            status, rest = await self._try(method, path, body)
            if status in {200, 204}:
                return json.loads(rest) if rest else None
            if status not in _AGAIN:
                break
            if attempt + 1 < TRIES:
                self.repeated += 1
                await asyncio.sleep(max(1.0, self._random.random() * min(2.0**attempt, LONGEST_PAUSE_SECONDS)))
        self.errors.append(f"{what}: status {status}: {rest[:200]!r}")
        return None

    async def _try(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, bytes]:
        """Call once; return status (0: no answer) and body."""
        now = int(time.time())
        claims = {"method": path, "jti": uuid.uuid4().hex, "aud": "api", "nbf": now, "exp": now + 30, "iat": now}
        token = jwt.encode(claims, self._secret, algorithm="HS512", headers={"kid": "not-used"})
        data = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {_PREFIX}{path} HTTP/1.1\r\nHost: {self._host}\r\nAuthorization: {token}\r\n"
            f"Accept: application/json\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
            "Connection: close\r\n\r\n"
        )
        began = time.monotonic()
        self.requests += 1
        try:
            reader, writer = await asyncio.open_connection(self._host, self._port)
            try:
                writer.write(head.encode() + data)
                answer = await reader.read()
            finally:
                writer.close()
        except OSError:
            return 0, b""
        self.call_seconds.append(time.monotonic() - began)
        first, _, rest = answer.partition(b"\r\n\r\n")
        return int(first.split(b" ", 2)[1]) if first else 0, b"" if b"chunked" in first else rest
