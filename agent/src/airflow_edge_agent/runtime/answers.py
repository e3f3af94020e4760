"""What answers of the Execution API say to calls that the agent makes on behalf of tasks."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from airflow_edge_agent.ports import RelayCall
from airflow_edge_agent.protocol.relay import REQUEST_HEADERS

_COME_AGAIN = frozenset({401, 403, 408, 425, 429})
"""Refusals that say nothing about the call itself."""

_MOST_ANSWER_BYTES = 64 * 1024
_MOST_REASON_CHARS = 300


def is_good(status: int) -> bool:
    """Tell whether a call has had its effect."""
    return status // 100 == 2  # noqa: PLR2004 -- HTTP's success codes


def may_pass(status: int) -> bool:
    """Tell whether the same call may be answered otherwise later."""
    return status // 100 == 5 or status in _COME_AGAIN  # noqa: PLR2004 -- HTTP's server errors


def kept_headers(call: RelayCall) -> list[tuple[bytes, bytes]]:
    """Return what is kept of a call's headers: not the secret of its job."""
    return [(name, value) for name, value in call.headers if name in REQUEST_HEADERS]


async def beginning(pieces: AsyncIterator[bytes]) -> bytes:
    """Read an answer, if it is long, only the first part."""
    text = b""
    async for piece in pieces:
        text += piece
        if len(text) >= _MOST_ANSWER_BYTES:
            break
    return text


def explain(text: bytes) -> tuple[str, str | None]:
    """Return what a bad answer says of itself, and which state it says the task is in."""
    try:
        detail = json.loads(text)["detail"]
    except (ValueError, KeyError, TypeError):
        return "", None
    if not isinstance(detail, dict):
        return " ".join(str(detail).split())[:_MOST_REASON_CHARS], None
    previous = detail.get("previous_state")
    said = f"{detail.get('reason', '')}: {detail.get('message', '')}" + (f" (state: {previous})" if previous else "")
    return " ".join(said.split())[:_MOST_REASON_CHARS], None if previous is None else str(previous)
