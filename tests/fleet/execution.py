"""What tasks tell the Execution API through their agents: that they run, and that they have succeeded."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpcore

from airflow_edge_agent.protocol import API_PREFIX
from airflow_edge_agent.protocol.frames import Offer
from airflow_edge_agent.protocol.relay import FENCE_HEADER, JOBS_PATH

CONNECTIONS = 64
"""So many calls of all agents are under way at a time."""

_TIMEOUTS = {"connect": 30.0, "read": 60.0, "write": 30.0, "pool": 120.0}


class CallError(Exception):
    """The Execution API, or something before it, did not do what it was asked."""


class ExecutionCalls:
    """Calls of all agents, each with its own proof, over connections that they share."""

    def __init__(self, server_url: str) -> None:
        self._server = f"{server_url}{API_PREFIX}{JOBS_PATH}"
        self._pool = httpcore.AsyncConnectionPool(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
        self.calls = 0

    async def run(self, offer: Offer, authorize: Callable[[], str]) -> None:
        """Say that the task runs.

        :raises CallError: it is not to run.
        """
        await self._tell(
            offer,
            authorize,
            "run",
            {
                "state": "running",
                "hostname": "simulated",
                "unixname": "edge-task",
                "pid": 1,
                "start_date": datetime.now(UTC).isoformat(),
            },
        )

    async def succeed(self, offer: Offer, authorize: Callable[[], str]) -> None:
        """Say that the task has succeeded.

        :raises CallError: nobody took note of that.
        """
        await self._tell(offer, authorize, "state", {"state": "success", "end_date": datetime.now(UTC).isoformat()})

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.aclose()

    async def _tell(self, offer: Offer, authorize: Callable[[], str], what: str, body: dict[str, Any]) -> None:
        instance: Any = offer.workload["ti"]
        url = f"{self._server}/{offer.job_id}/execution/task-instances/{instance['id']}/{what}"
        headers = [
            ("authorization", authorize()),
            (FENCE_HEADER, str(offer.fence)),
            ("content-type", "application/json"),
        ]
        self.calls += 1
        try:
            answer = await self._pool.request(
                "PATCH", url, headers=headers, content=json.dumps(body).encode(), extensions={"timeout": _TIMEOUTS}
            )
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            raise CallError(f"{what}: {type(error).__name__}") from None
        if answer.status not in {200, 204}:
            raise CallError(f"{what}: status {answer.status}: {answer.content[:200]!r}")
