"""Waiting for a condition, with a deadline, instead of for a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def eventually(condition: Callable[[], object], seconds: float = 10) -> None:
    """Return once the condition is true.

    :raises TimeoutError: it was not in time.
    """
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 -- conditions are about things that tell nobody of their changes
            await asyncio.sleep(0.005)
