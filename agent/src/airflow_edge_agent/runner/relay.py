"""The way to the Execution API through the agent's socket.

The agent may be restarted while tasks run: then a call waits until the next one listens.
"""

from __future__ import annotations

import functools
import importlib
import re
import time
from collections.abc import Callable
from typing import Any, Self

AWAY_SECONDS = 240.0
"""How long a job is not told that the agent is away. Airflow itself gives up a task without heartbeats after
``[scheduler] task_instance_heartbeat_timeout``, 300 s."""

_RETRY_SECONDS = 0.1

_HEARTBEAT = re.compile(r"/task-instances/[0-9a-fA-F-]+/heartbeat")


class RelayTransport:
    """What a job's HTTP client sends through; its own, but over connections that all jobs of this process share.

    :param check: called before each attempt; raises if the job is to end.
    :param patience_seconds: how long the agent may be away.
    """

    def __init__(self, path: str, check: Callable[[], None], patience_seconds: float = AWAY_SECONDS) -> None:
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
                time.sleep(_RETRY_SECONDS)
            else:
                self._away_since = None
                return response


@functools.cache
def shared_transport(path: str) -> Any:
    """Return the connections of this process to the agent's socket."""
    httpx: Any = importlib.import_module("httpx")
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=16)
    # Without reading certificates: there is no TLS on a local socket.
    return httpx.HTTPTransport(uds=path, verify=False, trust_env=False, limits=limits)
