"""What is known of the task runtime, and whom it concerns: the server, the loop that looks at it, and the jobs."""

from __future__ import annotations

import asyncio
from typing import Protocol

from airflow_edge_agent.ports import JobStore
from airflow_edge_agent.protocol.frames import Versions
from airflow_edge_agent.runtime.link import LinkLoop


class Watch(Protocol):
    """Looks at a task runtime."""

    def proven(self) -> None:
        """Note that it works."""

    def failed(self, problem: str) -> None:
        """Note that it does not, and why."""

    def check(self, *, prove: bool) -> tuple[dict[str, str], str | None]:
        """Return the versions of its parts and the problem."""


class TaskRuntime:
    """Collects what runner, watch and store say, and passes on what others want to know."""

    def __init__(self, watch: Watch, store: JobStore, link: LinkLoop, versions: Versions) -> None:
        self.has_failed = asyncio.Event()
        """Set when the runner has told of a problem."""
        self._watch = watch
        self._store = store
        self._link = link
        self._versions = versions

    def ready(self, found: dict[str, str]) -> None:
        """Note that a runner has loaded it; ``found`` are its versions."""
        self._watch.proven()
        self._found(found)

    def failed(self, problem: str) -> None:
        """Note that a runner could not load it."""
        self._watch.failed(problem)
        self.has_failed.set()

    def check(self, *, prove: bool) -> str | None:
        """Look at it and at the disk; return the problem that keeps jobs from being started. Takes its time."""
        found, problem = self._watch.check(prove=prove)
        if found:
            self._found(found)
        return problem or self._store.check()

    def _found(self, found: dict[str, str]) -> None:
        known = {key: found[key] for key in ("task_sdk", "airflow") if found.get(key)}
        self._link.runtime_known(self._versions.model_copy(update=known))
