"""Where a machine exchanges a join token for a credential."""

from __future__ import annotations

import asyncio
import functools
from concurrent.futures import Executor

from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from airflow_edge_agent.protocol.enrolment import MAX_ENROLL_BYTES, EnrollReply, EnrollRequest
from airflow_edge_server import plainly
from airflow_edge_server.api.auth import JOIN_KEY, possesses, unauthorized, unavailable
from airflow_edge_server.domain.enrolment import Machine
from airflow_edge_server.store.enrolment import Enrolled, JoinRefusedError, find_joining, join
from airflow_edge_server.store.text import clean
from airflow_edge_server.store.transaction import Sessions, write

log = plainly.logger(__name__)


class Enroll:
    """The endpoint. Without a join token nothing gets here but agents, and they have no business here.

    :param credential_days: how long a new credential is valid; 0: for ever.
    """

    def __init__(
        self,
        sessions: Sessions,
        threads: Executor,
        *,
        credential_days: float,
        body_seconds: float,
        server_version: str,
        airflow_version: str,
    ) -> None:
        self._sessions = sessions
        self._threads = threads
        self._credential_days = credential_days
        self._body_seconds = body_seconds
        self._server_version = server_version
        self._airflow_version = airflow_version

    async def handle(self, request: Request) -> Response:
        """Answer one request for enrolment."""
        text: str | None = request.scope.get(JOIN_KEY)
        if text is None:
            return unauthorized()
        try:
            async with asyncio.timeout(self._body_seconds):
                wanted = EnrollRequest.model_validate_json(await _read(request))
        except TimeoutError:
            return _error(408, f"the body did not come within {self._body_seconds:g} s")
        except ClientDisconnect:
            return Response(status_code=400)
        except ValidationError as error:
            fields = sorted({str(fault["loc"][0]) for fault in error.errors() if fault["loc"]})
            return _error(400, f"no request for enrolment: {', '.join(fields) or 'no JSON'}")
        if not possesses(wanted.public_key, wanted.signature, wanted.name):
            return _error(400, "the signature is not that of the public key")
        origin = request.client.host if request.client is not None else None
        work = functools.partial(self._join, text=text, wanted=wanted, origin=origin)
        loop = asyncio.get_running_loop()
        try:
            enrolled = await loop.run_in_executor(self._threads, write, self._sessions, work)
        except JoinRefusedError as error:
            log.warning("A machine at %s is not enrolled as agent %s: %s", origin, wanted.name, error)
            return _error(403, str(error))
        except DBAPIError as error:
            log.warning("A machine was not enrolled: the database failed (%s).", type(error.orig).__name__)
            return unavailable("the database is busy or cannot be reached")
        if enrolled is None:
            return unauthorized()
        told = "gets the answer to its enrolment again" if enrolled.repeated else "is enrolled"
        log.info("Agent %s %s, from host %s.", enrolled.name, told, clean(wanted.hostname))
        reply = EnrollReply(
            credential_id=enrolled.credential_id,
            name=enrolled.name,
            queues=enrolled.queues,
            team=enrolled.team,
            expires_at=enrolled.expires_at,
            replaced=enrolled.replaced > 0,
            server_version=self._server_version,
            airflow_version=self._airflow_version,
        )
        return Response(reply.model_dump_json(), media_type="application/json")

    def _join(self, session: Session, *, text: str, wanted: EnrollRequest, origin: str | None) -> Enrolled | None:
        token = find_joining(session, text, lock=True)
        if token is None:
            return None
        return join(
            session,
            token,
            name=wanted.name,
            public_key=wanted.public_key,
            machine=Machine(wanted.agent_id, clean(wanted.boot_id), clean(wanted.hostname)),
            credential_days=self._credential_days,
            origin=origin,
        )


async def _read(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_ENROLL_BYTES:
            # Whatever it is, it is no request for enrolment.
            return b""
    return bytes(body)


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status_code=status)
