"""Airflow's reader of task logs, extended by the logs that agents have delivered.

Imported by task processes too if it is configured there: nothing heavy at the top.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_edge_agent.protocol.text import visible
from airflow_edge_server import plainly

if TYPE_CHECKING:
    import os
    from collections.abc import Generator, Iterable

    from airflow_edge_server.store.logs import LoggedJob

    Streams = list[Generator[str, None, None]]

log = plainly.logger(__name__)

_UNFINISHED = frozenset({"running", "deferred", "queued", "scheduled", "restarting", "up_for_reschedule"})


class EdgeLogIO:
    """Reads a log from our tables if an agent delivered it, else from the reader that was configured before.

    :param inner: that reader; ``None``: there was none.
    """

    def __init__(self, inner: Any = None) -> None:
        self.inner = inner

    @classmethod
    def from_config(cls) -> EdgeLogIO:
        """Make the reader for ``[logging] remote_base_log_folder = edge-agent://``."""
        return cls()

    def __getattr__(self, name: str) -> Any:
        # Whatever else the configured reader offers stays reachable.
        if name == "inner" or self.inner is None:
            raise AttributeError(name)
        return getattr(self.inner, name)

    @property
    def processors(self) -> tuple[Any, ...]:
        """What the configured reader adds to the writing of logs."""
        return tuple(self.inner.processors) if self.inner is not None else ()

    def upload(self, path: os.PathLike[str] | str, ti: Any = None) -> None:
        """Leave uploading to the configured reader: agents deliver their logs by themselves."""
        if self.inner is not None:
            self.inner.upload(path, ti)

    def read(self, relative_path: str, ti: Any) -> tuple[list[str], list[str] | None]:
        """Return where the log comes from, and its text in one piece."""
        jobs = _jobs(relative_path)
        if not jobs and self.inner is not None:
            result: tuple[list[str], list[str] | None] = self.inner.read(relative_path, ti)
            return result
        sources, streams = self.stream(relative_path, ti)
        return sources, ["\n".join(stream) for stream in streams] or None

    def stream(self, relative_path: str, ti: Any) -> tuple[list[str], Streams]:
        """Return where the log comes from, and its lines.

        The dispatches of one try follow each other in one stream. Once the task has finished, Airflow looks nowhere
        else: so what a triggerer wrote, on this host or in the configured place, is added here.
        """
        jobs = _jobs(relative_path)
        if not jobs:
            return self._inner_stream(relative_path, ti)
        if self.inner is not None and all(job.handed_over or not job.log_next_offset for job in jobs):
            # What has been handed over must not be shown twice. Should it be gone there, it may still be here.
            remote_sources, remote = self._inner_stream(relative_path, ti)
            if remote:
                local_sources, local = _local_streams(relative_path)
                return [*remote_sources, *local_sources], [*remote, *local]
        sources = [describe(job) for job in jobs]
        finished = str(getattr(ti, "state", None)) not in _UNFINISHED
        streams: Streams = []
        if any(job.log_next_offset for job in jobs):
            streams.append(_lines_of(jobs))
        elif finished:
            # An empty answer would make Airflow call at the agent's host for the log, and wait for it in vain.
            streams.append(_just(sources))
        if finished:
            for more_sources, more in (_local_streams(relative_path), self._inner_stream(relative_path, ti)):
                sources.extend(more_sources)
                streams.extend(more)
        return sources, streams

    def _inner_stream(self, relative_path: str, ti: Any) -> tuple[list[str], Streams]:
        if self.inner is None:
            return [], []
        from airflow_edge_server.store.logs import lines  # noqa: PLC0415  not in task processes

        try:
            if (stream := getattr(self.inner, "stream", None)) is not None:
                sources, found = stream(relative_path, ti)
            else:
                sources, found = self.inner.read(relative_path, ti)
        except Exception as error:
            log.warning("The configured remote log reader failed: %s", type(error).__name__, exc_info=True)
            return [f"The configured remote log reader failed: {type(error).__name__}"], []
        streams: Streams = [
            _generator(lines([part.encode()], keep_tail=True)) if isinstance(part, str) else part
            for part in found or []
        ]
        return list(sources or []), streams


def describe(job: LoggedJob) -> str:
    """Say in one line what there is of a job's log, for the reader of the log."""
    return visible(_describe(job))


def _describe(job: LoggedJob) -> str:
    if job.agent_name is None:
        if job.state == "queued":
            return "Waiting for an agent"
        return "No agent ran this" + (f": {job.detail}" if job.detail else "")
    if job.log_next_offset:
        text = f"{job.log_next_offset} bytes delivered by agent {job.agent_name}"
        if job.log_bytes is not None and job.log_bytes > job.log_next_offset:
            text += f" of {job.log_bytes}"
        return text
    text = f"No log has been delivered by agent {job.agent_name}"
    if job.state == "finished":
        text += f"; its job ended as: {job.outcome}"
        if job.detail:
            text += f" ({job.detail})"
    return text


def _jobs(relative_path: str) -> list[LoggedJob]:
    from airflow.utils.session import create_session  # noqa: PLC0415  not in task processes

    from airflow_edge_server.store.logs import find_jobs, log_key  # noqa: PLC0415  not in task processes

    with create_session(scoped=False) as session:
        return find_jobs(session, key=log_key(relative_path))


def _lines_of(jobs: list[LoggedJob]) -> Generator[str, None, None]:
    from airflow_edge_server.store.logs import job_lines  # noqa: PLC0415  not in task processes

    for job in jobs:
        yield from job_lines(job)


def _local_streams(relative_path: str) -> tuple[list[str], Streams]:
    from airflow_edge_server.compat import local_log_files  # noqa: PLC0415  not in task processes

    paths = local_log_files(relative_path)
    return paths, [_file_lines(path) for path in paths]


def _file_lines(path: str) -> Generator[str, None, None]:
    try:
        with open(path, encoding="utf-8", errors="replace", newline="\n") as file:  # noqa: PTH123  the plain thing
            for line in file:
                yield line.removesuffix("\n")
    except OSError as error:
        log.warning("Log file %s cannot be read: %s", path, error.strerror)


def _generator(items: Iterable[str]) -> Generator[str, None, None]:
    # Airflow takes only true generators for streams.
    yield from items


_just = _generator
