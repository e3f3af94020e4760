"""Who may look at the fleet, and who may change it: Airflow's auth manager decides.

Everything is refused unless it says yes. A request that the browser sends by itself with the session's cookie changes
nothing: a change needs a token in ``Authorization``, or a request that only a page of this very server can make.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import Depends, HTTPException, Request, Response, Security
from fastapi.security import HTTPBearer
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from airflow_edge_server.compat import AdminUser

Authenticate = Callable[[Request], Awaitable[AdminUser]]
"""Tells who sends a request.

:raises fastapi.HTTPException: 401 when nobody in particular does.
"""

MAX_BODY_BYTES = 256 * 1024

_bearer = HTTPBearer(
    auto_error=False,
    description="A token of Airflow's own, as `POST /auth/token` gives it. In a browser the session's cookie does.",
)


@dataclass(frozen=True, slots=True)
class Gate:
    """The dependencies of the admin API's routes."""

    known: Callable[..., Awaitable[AdminUser]]
    """Lets everyone in whom Airflow knows."""
    viewer: Callable[..., Awaitable[AdminUser]]
    """Lets in who may look."""
    changer: Callable[..., Awaitable[AdminUser]]
    """Lets in who may change something."""


def make_gate(authenticate: Authenticate, problem: Callable[[], Awaitable[str | None]]) -> Gate:
    """Make the dependencies.

    :param problem: tells why the database cannot be used, if so.
    """

    async def known(request: Request, response: Response, _: object = Security(_bearer)) -> AdminUser:
        response.headers["Cache-Control"] = "no-store"
        user = await authenticate(request)
        if (found := await problem()) is not None:
            raise HTTPException(503, found, headers={"Retry-After": "5"})
        return user

    # Defaults, not annotations: these would be looked for among the module's names.
    async def viewer(user: AdminUser = Depends(known)) -> AdminUser:  # noqa: B008
        if not user.can_view:
            raise HTTPException(403, f"{user.name} may not look at edge agents: {VIEW_RIGHT}")
        return user

    async def changer(request: Request, user: AdminUser = Depends(viewer)) -> AdminUser:  # noqa: B008
        if (fault := forged(request)) is not None:
            raise HTTPException(403, fault)
        if not user.can_change:
            raise HTTPException(403, f"{user.name} may not change edge agents: {CHANGE_RIGHT}")
        return user

    return Gate(known, viewer, changer)


VIEW_RIGHT = "Airflow's right to see jobs is needed for that"
CHANGE_RIGHT = "Airflow's right to edit pools is needed for that"


def forged(request: Request) -> str | None:
    """Say why a changing request may come from another site's page; ``None``: it cannot.

    No page can set ``Authorization`` on a request to another site, nor send JSON to it, without being allowed to by the
    server, and browsers say of themselves where a request comes from.
    """
    if request.method == "GET" or request.headers.get("authorization"):
        return None
    if request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        return "the request comes from another site's page"
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and request.method != "DELETE":
        return "a change needs the header Content-Type: application/json"
    return None


class BodyLimit:
    """ASGI middleware that answers 413 to a body that is too large, before anything reads it."""

    def __init__(self, app: ASGIApp, most_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._most_bytes:
                text = f"the body has more than {self._most_bytes} bytes"
                await JSONResponse({"detail": text}, status_code=413)(scope, receive, send)
                return
        told = False

        async def again() -> Message:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self._app(scope, again, send)
