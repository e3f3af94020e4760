"""Jobs without a disk."""

from __future__ import annotations

from dataclasses import dataclass, replace

from airflow_edge_agent.core.events import JobEnded
from airflow_edge_agent.ports import FinalState, KeptCall, StoredJob, StoreError
from airflow_edge_agent.protocol.frames import Offer, Usage
from airflow_edge_agent.protocol.jobs import Outcome


@dataclass
class _Record:
    job: StoredJob
    log: bytes = b""
    ended: JobEnded | None = None
    sent: int | None = None
    final: FinalState | None = None
    rendered: KeptCall | None = None


class MemoryJobStore:
    """Jobs in a dictionary. ``runner_*`` does what the runner would do to the files."""

    def __init__(self) -> None:
        self.fault: StoreError | None = None
        self.shed_fault: StoreError | None = None
        self.forgotten: list[str] = []
        self.contact_ago = 0.0
        """What is answered to how long ago the server was there."""
        self._records: dict[str, _Record] = {}

    def runner_took(self, job_id: str) -> None:
        """The runner has begun with it."""
        record = self._records[job_id]
        record.job = replace(record.job, handed_over=True)

    def runner_logged(self, job_id: str, data: bytes) -> None:
        """Append to the log."""
        self.runner_took(job_id)
        self._records[job_id].log += data

    def runner_ended(
        self, job_id: str, outcome: Outcome, exit_code: int | None, detail: str | None, usage: Usage
    ) -> None:
        """Write the result."""
        record = self._records[job_id]
        record.ended = JobEnded(job_id, outcome, exit_code, detail, len(record.log), usage)

    def lose_log(self, job_id: str) -> None:
        """The log is not readable any more."""
        self._records[job_id].log = b""

    def add(self, offer: Offer, boot_id: str) -> None:
        if self.fault is not None:
            raise self.fault
        self._records[offer.job_id] = _Record(
            StoredJob(
                offer.job_id,
                offer.fence,
                offer.slots,
                offer.label,
                boot_id,
                handed_over=False,
                ended=None,
                disconnect_lease_seconds=offer.disconnect_lease_seconds,
            )
        )

    def load(self) -> list[StoredJob]:
        return [replace(r.job, ended=self.ended(r.job.job_id)) for _, r in sorted(self._records.items())]

    def handed_over(self, job_id: str) -> bool:
        record = self._records.get(job_id)
        return record is not None and record.job.handed_over

    def ended(self, job_id: str) -> JobEnded | None:
        record = self._records.get(job_id)
        if record is None or record.ended is None:
            return None
        return replace(record.ended, log_bytes=len(record.log))

    def log_size(self, job_id: str) -> int:
        record = self._records.get(job_id)
        return 0 if record is None else len(record.log)

    def read_log(self, job_id: str, offset: int, limit_bytes: int) -> bytes:
        record = self._records.get(job_id)
        return b"" if record is None else record.log[offset : offset + limit_bytes]

    def shed_log(self, job_id: str, offset: int, count: int) -> int:
        if self.shed_fault is not None:
            raise self.shed_fault
        record = self._records[job_id]
        log = record.log
        end = log.find(b"\n", offset + count - 1) + 1 or len(log)
        record.log = log[:offset] + b'{"event": "%d bytes of log were dropped"}\n' % (end - offset) + log[end:]
        return len(record.log)

    def note_sent(self, job_id: str, offset: int) -> None:
        self._records[job_id].sent = offset

    def sending(self, job_id: str, end: int) -> None:
        record = self._records.get(job_id)
        if record is not None and record.sent is not None and end > record.sent:
            record.sent = None

    def sent(self, job_id: str) -> int | None:
        record = self._records.get(job_id)
        return None if record is None else record.sent

    def append_log(self, job_id: str, text: str) -> int:
        record = self._records.get(job_id)
        if record is None:
            return 0
        if record.log:
            record.log += b'{"event": "%s"}\n' % text.encode()
        return len(record.log)

    def keep_final(self, job_id: str, final: FinalState) -> None:
        if self.fault is not None:
            raise self.fault
        self._records[job_id].final = final

    def has_final(self, job_id: str) -> bool:
        return self.final(job_id) is not None

    def final(self, job_id: str) -> FinalState | None:
        record = self._records.get(job_id)
        return None if record is None else record.final

    def drop_final(self, job_id: str) -> None:
        if job_id in self._records:
            self._records[job_id].final = None

    def keep_rendered(self, job_id: str, call: KeptCall) -> None:
        if self.fault is not None:
            raise self.fault
        self._records[job_id].rendered = call

    def has_rendered(self, job_id: str) -> bool:
        return self.rendered(job_id) is not None

    def rendered(self, job_id: str) -> KeptCall | None:
        record = self._records.get(job_id)
        return None if record is None else record.rendered

    def drop_rendered(self, job_id: str) -> None:
        if job_id in self._records:
            self._records[job_id].rendered = None

    def record_end(self, ended: JobEnded) -> None:
        if ended.job_id in self._records:
            self._records[ended.job_id].ended = ended

    def note_contact(self) -> None:
        self.contact_ago = 0.0

    def contact_seconds_ago(self) -> float:
        return self.contact_ago

    def check(self) -> str | None:
        return None if self.fault is None else str(self.fault)

    def forget(self, job_id: str) -> None:
        self.forgotten.append(job_id)
        self._records.pop(job_id, None)
