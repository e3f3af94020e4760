"""Answers a hello for a name that is in use: whether the one who holds it still lives is found out by asking it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor

from airflow_edge_server import plainly
from airflow_edge_server.api.hub import Hub
from airflow_edge_server.api.service import Answer

log = plainly.logger(__name__)

NO_SESSION = ""
"""No session of the agent is known to be over."""


async def answered(threads: Executor, hub: Hub, agent_name: str, handle: Callable[[str | None], Answer]) -> Answer:
    """Have a batch answered, a second time if what stood in its way turns out to be over.

    :param handle: answers the batch, given the session of the agent that is known to be over.
    :raises sqlalchemy.exc.DBAPIError: when the database fails.
    """
    loop = asyncio.get_running_loop()
    answer = await loop.run_in_executor(threads, handle, None)
    rival = answer.rival
    if rival is None:
        return answer
    if not await hub.is_over(agent_name, rival):
        return await loop.run_in_executor(threads, handle, NO_SESSION)
    log.info("Agent %s has come back after a reboot; the session that held its name does not answer.", agent_name)
    return await loop.run_in_executor(threads, handle, rival)
