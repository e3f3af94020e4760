"""Answers to requests and handshakes that get no further."""

from __future__ import annotations

import math

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send


def come_again(status: int, problem: str, seconds: float) -> Response:
    """Return an answer that asks the agent to come again, after so many seconds."""
    return JSONResponse({"error": problem}, status_code=status, headers={"Retry-After": str(math.ceil(seconds))})


async def refuse(scope: Scope, receive: Receive, send: Send, response: Response) -> None:
    """Answer a request, or the handshake of a WebSocket."""
    if scope["type"] != "websocket" or "websocket.http.response" in scope.get("extensions", {}):
        await response(scope, receive, send)
        return
    await receive()
    await send({"type": "websocket.close", "code": 1008, "reason": ""})
