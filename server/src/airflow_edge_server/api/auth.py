"""Lets only requests with a valid proof reach the agent API."""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import re
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from airflow_edge_agent.protocol import ENROLL_PATH
from airflow_edge_agent.protocol.enrolment import PROOF_PATTERN, PROOF_SECONDS, REALM, possession_message, proof_message
from airflow_edge_server import plainly
from airflow_edge_server.api.refusals import come_again, refuse
from airflow_edge_server.store.copies import find_ended, note_ended
from airflow_edge_server.store.enrolment import JOIN_TOKEN_PATTERN, find_credential, find_joining
from airflow_edge_server.store.finishing import find_finishing
from airflow_edge_server.store.models import EdgeAgentCredential
from airflow_edge_server.store.transaction import Sessions, read, write

log = plainly.logger(__name__)

CACHE_SECONDS = 1.0
"""How long a credential counts as valid without another look: a revoked one must be refused within two seconds."""

SCOPE_KEY = "airflow_edge_server.caller"
JOIN_KEY = "airflow_edge_server.join_token"
GONE_KEY = "airflow_edge_server.no_credential"
"""Set when there is no valid credential of that id, whatever the proof."""

TOLD_SECONDS = 600.0
"""How often the audit log is told that somebody uses the same credential that is not valid any more."""

_MOST_CACHED = 2_000
_PROOF = re.compile(rb"bearer +(" + PROOF_PATTERN.encode() + rb") *", re.IGNORECASE)
_JOIN = re.compile(rb"bearer +(" + JOIN_TOKEN_PATTERN.encode() + rb") *", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Caller:
    """The agent that a request comes from."""

    agent_name: str
    credential_id: str


@dataclass(frozen=True, slots=True)
class _Key:
    """A credential as it was looked up."""

    agent_name: str
    public_key: str
    until: float
    """Until when it need not be looked up again, in monotonic seconds."""


class Gate:
    """ASGI middleware in front of all routes.

    Without a valid proof every path and method is answered 401 and nothing else, so that nothing can be learnt from
    the answer. A valid join token opens the enrolment, and nothing else.

    An agent that was revoked comes through while it may finish its jobs. What it may do then is decided where it is
    done, by its row.

    :param problem: tells why the database cannot be used, if so.
    :param revoke_grace_seconds: how long an agent that was revoked may finish its jobs.
    :param clock: the time, in seconds since 1970.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        sessions: Sessions,
        threads: Executor,
        problem: Callable[[], Awaitable[str | None]],
        revoke_grace_seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._app = app
        self._sessions = sessions
        self._threads = threads
        self._problem = problem
        self._revoke_grace_seconds = revoke_grace_seconds
        self._clock = clock
        self._keys: dict[str, _Key] = {}
        self._told: dict[str, float] = {}
        """Of which credentials that have ended the audit log was told, and until when that will do."""
        self._seen: dict[bytes, str] = {}
        """Proofs that were right, by their hash: the cache must not be a place from which they can be read."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        response = await self._question(scope)
        if response is None:
            await self._app(scope, receive, send)
        else:
            await refuse(scope, receive, send, response)

    async def _question(self, scope: Scope) -> Response | None:
        """Note in the scope who it is; return the answer to whom it is not let pass."""
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        header = values[0] if len(values) == 1 else b""
        proof = _PROOF.fullmatch(header)
        join = _JOIN.fullmatch(header) if _is_enrolment(scope) else None
        if proof is None and join is None:
            return unauthorized()
        if (problem := await self._problem()) is not None:
            return unavailable(problem)
        try:
            admitted = await self._admit(scope, proof, join)
        except DBAPIError as error:
            log.warning("A credential could not be checked: the database failed (%s).", type(error.orig).__name__)
            return unavailable("the database is busy or cannot be reached")
        return None if admitted else unauthorized()

    async def _admit(self, scope: Scope, proof: re.Match[bytes] | None, join: re.Match[bytes] | None) -> bool:
        """Note in the scope who it is; return whether the request goes on."""
        if proof is not None and (caller := await self._verify(proof, scope)) is not None:
            scope[SCOPE_KEY] = caller
        elif join is not None and (text := await self._read_join_token(join[1].decode("ascii"))) is not None:
            scope[JOIN_KEY] = text
        return SCOPE_KEY in scope or JOIN_KEY in scope

    async def _verify(self, proof: re.Match[bytes], scope: Scope) -> Caller | None:
        credential_id, moment = proof[2].decode("ascii"), int(proof[3])
        if abs(moment - self._clock()) > PROOF_SECONDS:
            return None
        key = await self._key(credential_id)
        if key is None:
            scope[GONE_KEY] = True
            await self._note_ended(proof, scope)
            return None
        digest = hashlib.sha256(proof[1]).digest()
        if self._seen.get(digest) != key.public_key:
            message = proof_message(credential_id, moment)
            if not is_signed(key.public_key, proof[4].decode("ascii"), message):
                return None
            if len(self._seen) >= _MOST_CACHED:
                self._seen.clear()
            self._seen[digest] = key.public_key
        return Caller(key.agent_name, credential_id)

    async def _note_ended(self, proof: re.Match[bytes], scope: Scope) -> None:
        """Tell the audit log if this was made with the key of a credential that is not valid any more."""
        credential_id, clock, now = proof[2].decode("ascii"), time.monotonic(), datetime.now(UTC)
        if self._told.get(credential_id, 0.0) > clock:
            return
        loop = asyncio.get_running_loop()
        find = functools.partial(find_ended, credential_id=credential_id, now=now)
        row = await loop.run_in_executor(self._threads, read, self._sessions, find)
        # Whoever knows no more than an id must not be able to fill the audit log.
        message = proof_message(credential_id, int(proof[3]))
        if row is None or not is_signed(row.public_key, proof[4].decode("ascii"), message):
            return
        if len(self._told) >= _MOST_CACHED:
            self._told.clear()
        self._told[credential_id] = clock + TOLD_SECONDS
        origin = str((scope.get("client") or ("unknown",))[0])
        log.warning("Somebody at %s uses a credential of agent %s that has ended.", origin, row.agent_name)
        note = functools.partial(note_ended, credential_id=credential_id, origin=origin, now=now)
        await loop.run_in_executor(self._threads, write, self._sessions, note)

    async def _key(self, credential_id: str) -> _Key | None:
        now = time.monotonic()
        known = self._keys.get(credential_id)
        if known is not None and known.until > now:
            return known
        find = functools.partial(_find, credential_id=credential_id, grace_seconds=self._revoke_grace_seconds)
        row = await asyncio.get_running_loop().run_in_executor(self._threads, read, self._sessions, find)
        self._keys.pop(credential_id, None)
        if row is None:
            return None
        if len(self._keys) >= _MOST_CACHED:
            self._keys.clear()
        key = _Key(row.agent_name, row.public_key, now + CACHE_SECONDS)
        self._keys[credential_id] = key
        return key

    async def _read_join_token(self, text: str) -> str | None:
        find = functools.partial(find_joining, text=text)
        row = await asyncio.get_running_loop().run_in_executor(self._threads, read, self._sessions, find)
        return None if row is None else text


def _find(session: Session, credential_id: str, grace_seconds: float) -> EdgeAgentCredential | None:
    valid = find_credential(session, credential_id)
    if valid is not None:
        return valid
    return find_finishing(session, credential_id, grace_seconds=grace_seconds, now=datetime.now(UTC))


def is_signed(public_key: str, signature: str, message: bytes) -> bool:
    """Tell whether the signature is that of the key's owner.

    :param public_key: hexadecimal.
    :param signature: base64 for URLs, without padding.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        key.verify(base64.urlsafe_b64decode(signature + "=="), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def possesses(public_key: str, signature: str, subject: str) -> bool:
    """Tell whether whoever brings a new public key has the private one."""
    return is_signed(public_key, signature, possession_message(subject, public_key))


def unauthorized() -> Response:
    """Return the one answer to everything that has no valid proof. It tells the time, for whose clock is wrong."""
    return Response(status_code=401, headers={"WWW-Authenticate": f'Bearer realm="{REALM}", time="{time.time():.0f}"'})


def unavailable(problem: str) -> Response:
    """Return an answer that asks the agent to come again."""
    return come_again(503, problem, 5)


def _is_enrolment(scope: Scope) -> bool:
    path: str = scope["path"]
    path = path.removeprefix(scope.get("root_path", ""))
    return bool(scope["type"] == "http" and scope["method"] == "POST" and path == ENROLL_PATH)
