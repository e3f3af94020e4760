"""Join tokens and what agents get for them: key pairs, queues, a team.

For the commands, the admin API and the pages:

- :func:`create_join_token`, :func:`list_join_tokens`, :func:`revoke_join_token`;
- :func:`set_granted_queues`, :func:`granted_queues`;
- :func:`revoke_agent`, :func:`list_credentials`.

Each writes its own entry of the audit log, in the session it is given. The caller opens the session and commits it.

A join token reads ``eaj_<id>_<secret>``. Only the SHA-256 of the secret is stored; the secret is random and long enough
to need neither salt nor a slow hash.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

from sqlalchemy import ColumnElement, delete, func, or_, select, update

from airflow_edge_agent.protocol.enrolment import EVERY_QUEUE
from airflow_edge_agent.protocol.frames import QUEUE_PATTERN
from airflow_edge_agent.protocol.jobs import JobState
from airflow_edge_server import audit
from airflow_edge_server.domain.enrolment import (
    MAX_QUEUES,
    MAX_USES,
    Joining,
    Machine,
    is_elsewhere,
    is_name_pattern,
    joining_fault,
    name_fault,
)
from airflow_edge_server.store.agents import ensure_agent
from airflow_edge_server.store.among import among
from airflow_edge_server.store.models import EdgeAgent, EdgeAgentCredential, EdgeAgentJob, EdgeAgentJoinToken
from airflow_edge_server.store.transaction import locked
from airflow_edge_server.store.wakeup import Topic, announce

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

MAX_VALID_SECONDS = 366 * 86_400.0
MAX_TEAM = 64

JOIN_TOKEN_PATTERN = r"eaj_([0-9a-f]{16})_([A-Za-z0-9_-]{43})"  # noqa: S105  its form, not a token

_FORM = re.compile(JOIN_TOKEN_PATTERN)
_QUEUE = re.compile(QUEUE_PATTERN)


class JoinRefusedError(Exception):
    """Nobody is let in. The message is one line for whoever tries, and holds nothing that is none of their business."""


@dataclass(frozen=True, slots=True)
class NewJoinToken:
    """A join token as it was made; its text cannot be had again."""

    id: str
    text: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What an agent has become."""

    credential_id: str
    name: str
    queues: list[str]
    team: str | None
    expires_at: datetime | None
    replaced: int
    """How many credentials of that name were valid before, and are not any more."""
    repeated: bool = False
    """Whether this had been answered before, and nothing was changed."""


@dataclass(frozen=True, slots=True)
class Moved:
    """A credential is used on another machine than before."""

    before: Machine
    now: Machine


@dataclass(frozen=True, slots=True)
class Lifespan:
    """From when to when a credential is valid."""

    id: str
    created_at: datetime
    expires_at: datetime | None


# --- Join tokens ------------------------------------------------------------------------------------------------------


def create_join_token(
    session: Session,
    *,
    name_pattern: str,
    queues: Sequence[str],
    valid_seconds: float,
    team: str | None = None,
    uses: int = 1,
    by: str | None = None,
    origin: str | None = None,
) -> NewJoinToken:
    """Store a new join token and return its text, which cannot be had again.

    :param name_pattern: name of the agent, or names with ``*`` and ``?``.
    :param queues: what its agents may serve; ``*`` stands for every queue.
    :param valid_seconds: from now on.
    :raises ValueError: in one line, what is wrong with the arguments.
    """
    _check(name_pattern, queues, team, uses, valid_seconds)
    token_id = secrets.token_hex(8)
    secret = secrets.token_urlsafe(32)
    now = datetime.now(UTC)
    expires_at = now + timedelta(seconds=valid_seconds)
    session.add(
        EdgeAgentJoinToken(
            id=token_id,
            secret_hash=_hash(secret),
            name_pattern=name_pattern,
            queues=sorted(set(queues)),
            team_name=team,
            uses_left=uses,
            expires_at=expires_at,
            created_at=now,
            created_by=by,
        )
    )
    audit.record(
        session,
        "create_join_token",
        who=by,
        origin=origin,
        token=token_id,
        names=name_pattern,
        queues=sorted(set(queues)),
        team=team,
        uses=uses,
        expires=expires_at.isoformat(timespec="seconds"),
    )
    session.flush()
    return NewJoinToken(token_id, f"eaj_{token_id}_{secret}", expires_at)


def list_join_tokens(session: Session, *, usable: bool = False) -> list[EdgeAgentJoinToken]:
    """Return join tokens, newest first.

    :param usable: only those that still let somebody in.
    """
    token = EdgeAgentJoinToken
    query = select(token).order_by(token.created_at.desc(), token.id)
    if usable:
        query = query.where(token.revoked_at.is_(None), token.uses_left > 0, token.expires_at > datetime.now(UTC))
    return list(session.scalars(query))


def revoke_join_token(
    session: Session, token_id: str, *, by: str | None = None, origin: str | None = None
) -> bool | None:
    """Let nobody in with this token any more. Agents that came with it keep their credentials.

    :return: ``True``: done; ``False``: it was revoked before; ``None``: there is no such token.
    """
    if session.get(EdgeAgentJoinToken, token_id) is None:
        return None
    result = session.execute(
        update(EdgeAgentJoinToken)
        .where(EdgeAgentJoinToken.id == token_id, EdgeAgentJoinToken.revoked_at.is_(None))
        .values(revoked_at=datetime.now(UTC))
    )
    done = bool(getattr(result, "rowcount", 0))
    if done:
        audit.record(session, "revoke_join_token", who=by, origin=origin, token=token_id)
    return done


def find_joining(session: Session, text: str, *, lock: bool = False) -> EdgeAgentJoinToken | None:
    """Return the row of a join token whose secret is right; ``None``: it is no join token."""
    match = _FORM.fullmatch(text)
    if match is None:
        return None
    query = select(EdgeAgentJoinToken).where(EdgeAgentJoinToken.id == match[1])
    row = session.scalars(locked(query, session) if lock else query).one_or_none()
    if row is None or not hmac.compare_digest(row.secret_hash, _hash(match[2])):
        return None
    return row


def join(
    session: Session,
    token: EdgeAgentJoinToken,
    *,
    name: str,
    public_key: str,
    machine: Machine,
    credential_days: float,
    origin: str | None = None,
) -> Enrolled:
    """Exchange a join token for a credential. Credentials that the agent had before are revoked.

    Whoever has not got the answer asks again with the same key, and gets it again: that is no other use.

    :param token: locked, so that one who asks twice at once is let in once.
    :param public_key: hexadecimal Ed25519 public key.
    :param credential_days: how long the credential is valid; 0: for ever.
    :raises JoinRefusedError: nothing was changed.
    """
    now = datetime.now(UTC)
    joining = Joining(token.name_pattern, token.uses_left, token.expires_at, token.revoked_at is not None)
    given = _given(session, token, name, public_key)
    if (fault := joining_fault(joining, now, again=given is not None)) is not None:
        raise JoinRefusedError(f"this join token {fault}: make a new one with `airflow edge-agents enroll`")
    if given is not None:
        return _again(session, given, now)
    try:
        agent = ensure_agent(session, name)
    except ValueError as error:
        raise JoinRefusedError(str(error)) from None
    before = _valid_ids(session, name, now)
    if (fault := name_fault(joining, name, taken=bool(before))) is not None:
        raise JoinRefusedError(fault)
    token.uses_left -= 1
    token.used_at = now
    replaced = _revoke(session, name, now)
    expires_at = now + timedelta(days=credential_days) if credential_days else None
    credential = EdgeAgentCredential(
        id=secrets.token_hex(8),
        agent_name=name,
        public_key=public_key,
        created_at=now,
        expires_at=expires_at,
        join_token_id=token.id,
        agent_id=machine.agent_id,
        boot_id=machine.boot_id,
        hostname=machine.hostname,
    )
    session.add(credential)
    agent.granted_queues = list(token.queues)
    agent.team_name = token.team_name
    agent.enrolled_at, agent.revoked_at = now, None
    audit.record(
        session,
        "enroll",
        who=f"agent {name}",
        agent=name,
        origin=origin,
        token=token.id,
        invited_by=token.created_by,
        credential=credential.id,
        machine=str(machine),
        replaces=before or None,
        queues=token.queues,
        team=token.team_name,
    )
    session.flush()
    if replaced:
        announce(session, Topic.ORDERS)
    return Enrolled(credential.id, name, list(token.queues), token.team_name, expires_at, replaced)


def _given(session: Session, token: EdgeAgentJoinToken, name: str, public_key: str) -> EdgeAgentCredential | None:
    """Return what this key has been given for the token, whether it is still valid or not."""
    credential = EdgeAgentCredential
    query = select(credential).where(
        credential.join_token_id == token.id, credential.agent_name == name, credential.public_key == public_key
    )
    return session.scalars(query.order_by(credential.created_at.desc())).first()


def _again(session: Session, given: EdgeAgentCredential, now: datetime) -> Enrolled:
    """Return the answer that was given before, with what the agent may do now.

    :raises JoinRefusedError: the credential is not valid any more. A repeated request brings nobody back.
    """
    if given.revoked_at is not None or (given.expires_at is not None and given.expires_at <= now):
        raise JoinRefusedError(
            "this machine was enrolled with this join token before, and what it got was revoked or replaced since: "
            "make a new one with `airflow edge-agents enroll`"
        )
    credential = EdgeAgentCredential
    replaced = select(func.count()).where(
        credential.agent_name == given.agent_name, credential.revoked_at == given.created_at
    )
    queues, team = granted_to(session, given.agent_name)
    return Enrolled(
        given.id,
        given.agent_name,
        queues,
        team,
        given.expires_at,
        int(session.scalar(replaced) or 0),
        repeated=True,
    )


# --- What an agent may do ---------------------------------------------------------------------------------------------


def granted_queues(session: Session, name: str) -> list[str] | None:
    """Return the queues that an agent may serve, ``["*"]`` for every one; ``None``: there is no such agent."""
    agent = session.get(EdgeAgent, name)
    return None if agent is None else list(agent.granted_queues or ())


def granted_to(session: Session, name: str) -> tuple[list[str], str | None]:
    """Return the queues that an agent may serve, and its team."""
    row = session.execute(
        select(EdgeAgent.granted_queues, EdgeAgent.team_name).where(EdgeAgent.name == name)
    ).one_or_none()
    return ([], None) if row is None else (list(row.granted_queues or ()), row.team_name)


def set_granted_queues(
    session: Session, name: str, queues: Sequence[str], *, by: str | None = None, origin: str | None = None
) -> bool | None:
    """Change what an agent may serve. It counts at once for new jobs; jobs that it holds go on.

    :return: whether that is a change; ``None``: there is no such agent.
    :raises ValueError: in one line, what is wrong with the queues.
    """
    _check_queues(queues)
    agent = session.get(EdgeAgent, name, with_for_update=True)
    if agent is None:
        return None
    wanted, before = sorted(set(queues)), agent.granted_queues
    if wanted == before:
        return False
    agent.granted_queues = wanted
    audit.record(session, "grant_queues", who=by, agent=name, origin=origin, queues=wanted, before=before)
    session.flush()
    announce(session, Topic.ORDERS)
    return True


# --- Credentials ------------------------------------------------------------------------------------------------------


def list_credentials(session: Session, name: str | None = None) -> list[EdgeAgentCredential]:
    """Return credentials, those that are not valid any more as well, by agent and age."""
    credential = EdgeAgentCredential
    query = select(credential).order_by(credential.agent_name, credential.created_at)
    return list(session.scalars(query if name is None else query.where(credential.agent_name == name)))


def find_credential(session: Session, credential_id: str) -> EdgeAgentCredential | None:
    """Return a credential that is valid now; ``None``: there is none, or not any more."""
    now = datetime.now(UTC)
    query = select(EdgeAgentCredential).where(EdgeAgentCredential.id == credential_id, _is_valid(now))
    return session.scalars(query).one_or_none()


def revoke_agent(
    session: Session,
    name: str,
    *,
    jobs: Literal["finish", "cancel"] = "finish",
    by: str | None = None,
    origin: str | None = None,
) -> int | None:
    """Revoke all credentials of an agent: it gets no more jobs, is shut out, and cannot come back.

    :param jobs: what becomes of those that it holds. ``finish``: it is let in until the last of them has ended, for
        nothing else (:mod:`~airflow_edge_server.store.finishing`); without any, its connection ends within two seconds.
        ``cancel``: it is told to end them and shut out at once, and Airflow is told that they were lost.
    :return: how many credentials were valid; ``None``: there is no such agent.
    """
    agent = session.get(EdgeAgent, name, with_for_update=True)
    if agent is None:
        return None
    now = datetime.now(UTC)
    count = _revoke(session, name, now)
    agent.revoked_at = agent.revoked_at or now
    cancelled = 0
    if jobs == "cancel":
        job = EdgeAgentJob
        result = session.execute(
            update(job)
            .where(
                job.agent_name == name,
                job.state.in_([JobState.ACCEPTED.value, JobState.RUNNING.value]),
                job.cancel_reason.is_(None),
            )
            .values(cancel_reason=f"the agent was revoked by {by or 'an administrator'}")
            .execution_options(synchronize_session=False)
        )
        cancelled = int(getattr(result, "rowcount", 0))
    audit.record(
        session, "revoke_agent", who=by, agent=name, origin=origin, credentials=count, jobs=jobs, cancelled=cancelled
    )
    session.flush()
    announce(session, Topic.ORDERS)
    return count


def add_successor(
    session: Session, credential_id: str, public_key: str, *, credential_days: float, now: datetime
) -> EdgeAgentCredential | None:
    """Store the key that will take the place of a credential. Until it is first used, both are valid.

    A successor that was never used is forgotten: its agent has lost it, or has never heard that it was stored.

    :return: the new credential; ``None``: the present one is not valid any more.
    """
    query = select(EdgeAgentCredential).where(EdgeAgentCredential.id == credential_id, _is_valid(now))
    present = session.scalars(locked(query, session)).one_or_none()
    if present is None:
        return None
    session.execute(delete(EdgeAgentCredential).where(EdgeAgentCredential.predecessor == credential_id))
    successor = EdgeAgentCredential(
        id=secrets.token_hex(8),
        agent_name=present.agent_name,
        public_key=public_key,
        created_at=now,
        expires_at=now + timedelta(days=credential_days) if credential_days else None,
        predecessor=credential_id,
        agent_id=present.agent_id,
        boot_id=present.boot_id,
        hostname=present.hostname,
    )
    session.add(successor)
    session.flush()
    return successor


def note_use(session: Session, credential_id: str, machine: Machine, *, now: datetime) -> Moved | None:
    """Note that an agent has said hello with this credential; its predecessor is not valid from now on.

    :return: the machines, if it is another one than before.
    """
    query = select(EdgeAgentCredential).where(EdgeAgentCredential.id == credential_id)
    credential = session.scalars(locked(query, session)).one_or_none()
    if credential is None:
        return None
    if credential.predecessor is not None:
        session.execute(
            update(EdgeAgentCredential)
            .where(EdgeAgentCredential.id == credential.predecessor, EdgeAgentCredential.revoked_at.is_(None))
            .values(revoked_at=now)
        )
        audit.record(
            session,
            "rotate_credential",
            who=f"agent {credential.agent_name}",
            agent=credential.agent_name,
            credential=credential.id,
            replaces=[credential.predecessor],
        )
        credential.predecessor = None
        announce(session, Topic.ORDERS)
    before = Machine(credential.agent_id, credential.boot_id, credential.hostname)
    if before == machine:
        return None
    credential.agent_id, credential.boot_id, credential.hostname = machine.agent_id, machine.boot_id, machine.hostname
    if not is_elsewhere(before, machine):
        return None
    audit.record(
        session,
        "credential_elsewhere",
        who=f"agent {credential.agent_name}",
        agent=credential.agent_name,
        credential=credential.id,
        before=str(before),
        now=str(machine),
    )
    return Moved(before, machine)


def purge_credentials(session: Session, *, before: datetime) -> int:
    """Forget credentials and join tokens that have not been valid since then; return how many."""
    credential, token = EdgeAgentCredential, EdgeAgentJoinToken
    dead = [
        delete(credential).where(or_(credential.revoked_at < before, credential.expires_at < before)),
        delete(token).where(or_(token.revoked_at < before, token.expires_at < before)),
    ]
    return sum(int(getattr(session.execute(statement), "rowcount", 0)) for statement in dead)


def valid_among(session: Session, credential_ids: Sequence[str], now: datetime) -> list[Lifespan]:
    """Return those of the credentials that are valid now."""
    credential = EdgeAgentCredential
    query = select(credential.id, credential.created_at, credential.expires_at)
    rows = session.execute(query.where(among(session, credential.id, credential_ids), _is_valid(now)))
    return [Lifespan(*row) for row in rows]


def count_valid(session: Session, name: str) -> int:
    """Return how many credentials of an agent are valid now; two while one takes the place of the other."""
    query = select(func.count()).where(EdgeAgentCredential.agent_name == name, _is_valid(datetime.now(UTC)))
    return int(session.scalar(query) or 0)


def _is_valid(now: datetime) -> ColumnElement[bool]:
    credential = EdgeAgentCredential
    return credential.revoked_at.is_(None) & or_(credential.expires_at.is_(None), credential.expires_at > now)


def _valid_ids(session: Session, name: str, now: datetime) -> list[str]:
    query = select(EdgeAgentCredential.id).where(EdgeAgentCredential.agent_name == name, _is_valid(now))
    return sorted(session.scalars(query))


def _revoke(session: Session, name: str, now: datetime) -> int:
    result = session.execute(
        update(EdgeAgentCredential)
        .where(EdgeAgentCredential.agent_name == name, EdgeAgentCredential.revoked_at.is_(None))
        .values(revoked_at=now)
    )
    return int(getattr(result, "rowcount", 0))


def _check(name_pattern: str, queues: Sequence[str], team: str | None, uses: int, valid_seconds: float) -> None:
    if not is_name_pattern(name_pattern):
        raise ValueError(
            f"{name_pattern!r} is no name or pattern: it must begin with a letter or digit, followed by at most 62 "
            "letters, digits, '.', '_' or '-'; '*' and '?' stand for any of them"
        )
    _check_queues(queues)
    if team is not None and not (team.isprintable() and 0 < len(team) <= MAX_TEAM):
        raise ValueError(f"{team!r} is no name of a team")
    if not 1 <= uses <= MAX_USES:
        raise ValueError(f"uses must be between 1 and {MAX_USES}, not {uses}")
    if not 1 <= valid_seconds <= MAX_VALID_SECONDS:
        raise ValueError(f"a join token is valid for 1 second to {MAX_VALID_SECONDS / 86_400:.0f} days")


def _check_queues(queues: Sequence[str]) -> None:
    if not 1 <= len(queues) <= MAX_QUEUES:
        raise ValueError(f"name 1 to {MAX_QUEUES} queues, or {EVERY_QUEUE!r} for every one")
    for queue in queues:
        if _QUEUE.fullmatch(queue) is None:
            raise ValueError(f"{queue!r} is no name of a queue")


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("ascii")).hexdigest()
