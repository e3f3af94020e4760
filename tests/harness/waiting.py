"""Waiting for a condition, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


class WaitTimeoutError(AssertionError):
    """The condition did not come true in time. The message says which one, and what was seen last."""


def wait_until(
    condition: Callable[[], _T],
    *,
    seconds: float,
    what: str,
    poll_seconds: float = 0.1,
    seen: Callable[[], object] | None = None,
) -> _T:
    """Call ``condition`` until it returns something true, and return that.

    :param what: what is waited for, for the message.
    :param seen: describes the present state for the message, called only when time is up.
    :raises WaitTimeoutError: after ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            detail = f"; last seen: {seen()}" if seen else ""
            raise WaitTimeoutError(f"waited {seconds:g} s for {what}{detail}")
        time.sleep(poll_seconds)
