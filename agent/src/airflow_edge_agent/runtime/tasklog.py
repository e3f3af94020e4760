"""Task logs in the journal, line by line as they are written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping

from airflow_edge_agent.core.events import ForgetJob
from airflow_edge_agent.core.jobs import AgentJob
from airflow_edge_agent.ports import JobStore
from airflow_edge_agent.protocol.text import visible
from airflow_edge_agent.runtime.logging import PRIORITIES, redact
from airflow_edge_agent.runtime.pump import Pump

LOOK_SECONDS = 1.0
PIECE_BYTES = 64 * 1024
LONGEST_LINE_BYTES = 16 * 1024
IDENTIFIER = "edge-task"


class TaskLogs:
    """Copies what is added to the logs of jobs. A job that was there before us is copied from now on."""

    def __init__(self, pump: Pump, store: JobStore, send: Callable[[Mapping[str, str]], bool]) -> None:
        self._pump = pump
        self._store = store
        self._send = send
        self._offsets: dict[str, int] = {}
        self._rest: dict[str, bytes] = {}

    async def run(self) -> None:
        """Copy until cancelled."""
        self._pump.before_forget.append(self._forgotten)
        for job in self._pump.core.jobs.values():
            self._offsets[job.job_id] = job.log_size
        while True:
            await self._pump.busy.wait()
            for job in list(self._pump.core.jobs.values()):
                self._copy(job)
            await asyncio.sleep(LOOK_SECONDS)

    def _copy(self, job: AgentJob | ForgetJob) -> None:
        while data := self._store.read_log(job.job_id, self._offsets.get(job.job_id, 0), PIECE_BYTES):
            self._offsets[job.job_id] = self._offsets.get(job.job_id, 0) + len(data)
            *lines, rest = (self._rest.pop(job.job_id, b"") + data).split(b"\n")
            if len(rest) > LONGEST_LINE_BYTES:
                lines, rest = [*lines, rest], b""
            if rest:
                self._rest[job.job_id] = rest
            for line in lines:
                self._say(job, line)

    def _forgotten(self, job: ForgetJob) -> None:
        self._copy(job)
        if rest := self._rest.pop(job.job_id, b""):
            self._say(job, rest)
        self._offsets.pop(job.job_id, None)

    def _say(self, job: AgentJob | ForgetJob, line: bytes) -> None:
        text = line.decode("utf-8", errors="replace")[:LONGEST_LINE_BYTES].strip()
        if not text:
            return
        level = "info"
        try:
            entry = json.loads(text)
        except ValueError:
            entry = None
        if isinstance(entry, dict) and isinstance(entry.get("event"), str):
            level, text = str(entry.get("level", "info")).lower(), entry["event"]
        fields = {
            "MESSAGE": visible(redact(text), keep="\n\t"),
            "PRIORITY": PRIORITIES.get(level, "6"),
            "SYSLOG_IDENTIFIER": IDENTIFIER,
            "EDGE_JOB_ID": job.job_id,
            "EDGE_TASK": visible(job.label),
        }
        if job.task is not None:
            fields |= {f"AIRFLOW_{name.upper()}": str(value) for name, value in job.task.told().items()}
        self._send(fields)
