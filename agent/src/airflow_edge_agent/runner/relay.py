"""The way to the Execution API through the agent's socket.

The agent may be restarted while tasks run: then a call waits until the next one listens. The state in which a task ends
does not: it is put on disk, where the next agent finds it.
"""

from __future__ import annotations

import base64
import functools
import importlib
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from .files import sync_folder, write_whole

FINAL_FILE = "final.json"
"""In a job's folder: the call by which its task tells the state it ends in."""

KEEP_SECONDS = 5.0
"""After how long without an agent a final state is put on disk."""

MAX_FINAL_BYTES = 16 * 1024 * 1024
"""Most bytes of the body of such a call; a longer one waits for the agent."""

AWAY_SECONDS = 240.0
"""How long a job is not told that the agent is away. Airflow itself gives up a task without heartbeats after
``[scheduler] task_instance_heartbeat_timeout``, 300 s."""

_RETRY_SECONDS = 0.1

_STATE = re.compile(rb"/execution/(task-instances/[0-9a-fA-F-]{36}/state(?:\?[!-~]*)?)")
_KEPT_HEADERS = ("accept", "airflow-api-version", "content-type", "correlation-id", "user-agent")
_HEARTBEAT = re.compile(r"/task-instances/[0-9a-fA-F-]+/heartbeat")


class RelayTransport:
    """What a job's HTTP client sends through; its own, but over connections that all jobs of this process share.

    :param check: called before each attempt; raises if the job is to end.
    :param patience_seconds: how long the agent may be away.
    :param folder: of the job; ``None``: a final state is not put on disk.
    """

    def __init__(
        self,
        path: str,
        check: Callable[[], None],
        patience_seconds: float = AWAY_SECONDS,
        folder: Path | None = None,
    ) -> None:
        self._folder = folder
        self._inner = shared_transport(path)
        self._errors: Any = importlib.import_module("httpx")
        self._check = check
        self._patience_seconds = patience_seconds
        self._away_since: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the connections to the other jobs."""

    def handle_request(self, request: Any) -> Any:
        """Send a request; wait for the agent if it is away."""
        while True:
            self._check()
            try:
                response = self._inner.handle_request(request)
            except self._errors.TransportError as error:
                now = time.monotonic()
                self._away_since = self._away_since or now
                if now >= self._away_since + self._patience_seconds:
                    raise
                if request.method == "PUT" and _HEARTBEAT.search(request.url.path):
                    return self._errors.Response(204, request=request)
                if not isinstance(error, self._errors.ConnectError):
                    raise
                if now >= self._away_since + KEEP_SECONDS and self._keep(request):
                    return self._errors.Response(204, request=request)
                time.sleep(_RETRY_SECONDS)
            else:
                self._away_since = None
                return response

    def _keep(self, request: Any) -> bool:
        """Put a final state on disk; tell whether it is one, and is there."""
        match = _STATE.fullmatch(request.url.raw_path)
        if self._folder is None or match is None or request.method != "PATCH":
            return False
        body = request.read()
        if len(body) > MAX_FINAL_BYTES:
            return False
        content = {
            "method": "PATCH",
            "target": match[1].decode("ascii"),
            # Not the job's secret: whoever delivers this has a credential.
            "headers": [(name, request.headers[name]) for name in _KEPT_HEADERS if name in request.headers],
            "body": base64.b64encode(body).decode("ascii"),
            "at": time.time(),
        }
        try:
            write_whole(self._folder / FINAL_FILE, content, sync=True)
            sync_folder(self._folder.parent)
        except OSError as error:
            print(f"its final state cannot be kept on disk: {error}", file=sys.stderr)  # noqa: T201 -- the job's supervisor.log
            return False
        return True


@functools.cache
def shared_transport(path: str) -> Any:
    """Return the connections of this process to the agent's socket."""
    httpx: Any = importlib.import_module("httpx")
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=16)
    # Without reading certificates: there is no TLS on a local socket.
    return httpx.HTTPTransport(uds=path, verify=False, trust_env=False, limits=limits)
