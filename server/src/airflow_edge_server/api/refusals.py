"""Answers to requests and handshakes that get no further."""

from __future__ import annotations

import logging
import math
from contextvars import ContextVar

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

_answered: ContextVar[bool] = ContextVar("edge_agents_handshake_answered", default=False)
"""Whether the handshake that this task serves got its answer."""


class _NoFault(logging.Filter):
    """Keeps uvicorn from calling a handshake that was refused an incomplete one.

    It does so after each ``websocket.http.response``, whatever the answer, with one of its implementations; and there
    is no other way to say 401 or 429. What it says of the handshakes of other apps passes.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return not (_answered.get() and str(record.msg).startswith("ASGI callable returned without completing"))


_no_fault = _NoFault()


def come_again(status: int, problem: str, seconds: float) -> Response:
    """Return an answer that asks the agent to come again, after so many seconds."""
    return JSONResponse({"error": problem}, status_code=status, headers={"Retry-After": str(math.ceil(seconds))})


async def refuse(scope: Scope, receive: Receive, send: Send, response: Response) -> None:
    """Answer a request, or the handshake of a WebSocket."""
    if scope["type"] != "websocket":
        await response(scope, receive, send)
    elif "websocket.http.response" in scope.get("extensions", {}):
        await response(scope, receive, send)
        # The server's task goes on in the same context.
        _answered.set(True)
        logging.getLogger("uvicorn.error").addFilter(_no_fault)
    else:
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": ""})
