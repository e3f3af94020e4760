"""Whether the task runtime can run tasks: a quick look, a real import as proof, and patience with one that cannot.

A quick look sees a Python and a Task SDK's version. That something in it cannot be imported shows only when it is done:
by the runner, for the first job, or by the proof here. Such a problem stands until the runtime has changed or a proof
succeeds, or every job offered meanwhile would be started in vain.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from airflow_edge_agent.adapters.runtime_env import check_runtime

FIRST_RETRY_SECONDS = 30.0
LONGEST_RETRY_SECONDS = 900.0
"""A proof costs seconds of CPU on a small machine: a runtime that stays broken is tried ever less often."""

_PROOF_SECONDS = 180.0
_WORDS = 300

_PATHS = "import json, sys; print(json.dumps(sys.path))"

# In its last line the reason, in one piece. Niced, where the unit lets us: nobody waits for it.
_PROOF = """
import contextlib, importlib, os, sys
with contextlib.suppress(OSError):
    os.nice(10)
for name in ("api.client", "execution_time.supervisor", "execution_time.task_runner"):
    try:
        importlib.import_module("airflow.sdk." + name)
    except BaseException as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        sys.stderr.write(f"\\n{text}\\n")
        sys.stderr.flush()
        os._exit(1)
os._exit(0)
"""


class RuntimeWatch:
    """Knows how the task runtime is.

    :param python: its Python.
    :param environment: what the runner gets, too.
    :param clock: monotonic seconds.
    :param identity: as whom to run it, in the words of :class:`subprocess.Popen`; by default as ourselves.
    """

    def __init__(
        self,
        python: Path,
        environment: Mapping[str, str],
        *,
        clock: Callable[[], float] = time.monotonic,
        identity: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._python = python
        self._environment = dict(environment)
        self._clock = clock
        self._identity = identity
        # Checks run in a thread, what the runner says comes from the event loop.
        self._lock = threading.Lock()
        self._proven = False
        self._problem: str | None = None
        self._failures = 0
        self._retry_at = 0.0
        self._print: str | None = None
        """How the runtime looked when it failed."""
        self._told = 0
        """Counts what the runner said: a proof that began before is not worth more."""

    def proven(self) -> None:
        """Note that a runner works with it."""
        with self._lock:
            self._told += 1
            self._proven = True
            self._problem = None
            self._failures = 0

    def failed(self, problem: str) -> None:
        """Note that a runner could not work with it, and why."""
        with self._lock:
            self._told += 1
            self._fail(problem)

    def _fail(self, problem: str) -> None:
        self._proven = False
        self._problem = problem
        self._print = None
        wait = min(FIRST_RETRY_SECONDS * 2**self._failures, LONGEST_RETRY_SECONDS)
        self._failures = min(self._failures + 1, 10)
        self._retry_at = self._clock() + wait

    def check(self, *, prove: bool) -> tuple[dict[str, str], str | None]:
        """Look at the runtime; takes milliseconds, with a proof seconds.

        :param prove: whether to import the Task SDK, too, if no runner has. After a failure this is done in any case,
            as soon as something in the runtime has changed, and from time to time.
        :return: the versions that can be told, as :func:`check_runtime` does, and the problem, if there is one.
        """
        versions, problem = check_runtime(self._python, self._identity)
        if problem is not None:
            return {}, problem
        with self._lock:
            standing, told, wanted = self._problem, self._told, prove and not self._proven
            waits = self._clock() < self._retry_at
        if standing is not None:
            wanted = self._changed() or not waits
        if not wanted:
            with self._lock:
                # Not what stood at the beginning: a runner may have told of a problem since.
                return versions, self._problem
        # Before the proof: what is mended while it runs is a change, too.
        before = self._fingerprint()
        problem = self._prove()
        with self._lock:
            if self._told == told:
                if problem is None:
                    self._problem = None
                else:
                    self._fail(problem)
                    self._print = before
            return versions, self._problem

    def _changed(self) -> bool:
        """Tell whether the runtime looks other than when it failed."""
        now = self._fingerprint()
        with self._lock:
            before, self._print = self._print, now
        return before is not None and before != now

    def _fingerprint(self) -> str:
        places = [self._python, self._python.parent.parent / "pyvenv.cfg"]
        done = self._run(_PATHS, seconds=30)
        # Who knows what a sitecustomize prints there.
        with contextlib.suppress(ValueError, TypeError):
            places += [Path(place) for place in json.loads(done.stdout) if place] if done is not None else []
        marks = []
        for place in places:
            try:
                # A directory's time changes with every package that comes or goes.
                found = place.stat()
                marks.append(f"{place} {found.st_ino} {found.st_size} {found.st_mtime_ns}")
            except OSError:
                marks.append(f"{place} none")
        return "\n".join(marks)

    def _prove(self) -> str | None:
        with tempfile.TemporaryDirectory(prefix="edge-agent-") as home:
            if self._identity:
                os.chown(home, self._identity["user"], self._identity["group"])
            # Airflow writes into its home as soon as it is imported, and the real one may be another user's.
            done = self._run(_PROOF, seconds=_PROOF_SECONDS, AIRFLOW_HOME=home)
        if done is None:
            return f"the task runtime {self._python} does not load the Task SDK within {_PROOF_SECONDS:.0f} s"
        if done.returncode == 0:
            return None
        lines = done.stderr.strip().splitlines()
        reason = lines[-1][:_WORDS] if lines else f"exit code {done.returncode}"
        return f"the task runtime {self._python} does not start ({reason}): check what is installed there"

    def _run(self, code: str, *, seconds: float, **variables: str) -> subprocess.CompletedProcess[str] | None:
        try:
            return subprocess.run(  # noqa: S603 -- the Python is the operator's choice
                [str(self._python), "-P", "-c", code],
                **self._identity,
                env=self._environment | variables,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                check=False,
                cwd=os.sep,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
