"""How a machine becomes an agent, and proves from then on that it is one.

An agent has a key pair (Ed25519). The private key is made on its machine and never leaves it; the server has the public
one. With each request the agent sends a *proof*: id of the credential, the time, and a signature of both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from airflow_edge_agent.protocol.frames import JobId, Name, PublicKey, Queue, Signature, Word

EVERY_QUEUE = "*"
"""Among granted queues: all there are."""

REALM = "edge-agents"
"""By this, in ``WWW-Authenticate``, an agent knows that a refusal is the agent API's, and not a proxy's before it."""

PROOF_SECONDS = 120
"""How far the time in a proof may be from the server's."""

PROOF_PATTERN = r"eap_([0-9a-f]{16})_([0-9]{1,12})_([A-Za-z0-9_-]{86})"
"""What a proof looks like: id of the credential, Unix time, signature in base64 for URLs without padding."""

MAX_ENROLL_BYTES = 8 * 1024
"""Most bytes of a request for enrolment."""


def proof_message(credential_id: str, moment: int) -> bytes:
    """Return what is signed for a proof."""
    return f"airflow-edge-agent proof 1\n{credential_id}\n{moment}".encode()


def possession_message(subject: str, public_key: str) -> bytes:
    """Return what is signed with a new key, so that nobody brings another's.

    :param subject: name of the agent that is enrolled; id of the credential whose place the new one takes.
    """
    return f"airflow-edge-agent key 1\n{subject}\n{public_key}".encode()


def permitted(asked: Iterable[str], granted: Collection[str] | None) -> list[str]:
    """Return which of the queues that an agent asks for it may serve."""
    if not granted:
        return []
    return [queue for queue in asked if EVERY_QUEUE in granted or queue in granted]


class EnrollRequest(BaseModel):
    """Machine to server, with a join token: make me this agent."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: Name
    public_key: PublicKey
    signature: Signature
    """Of :func:`possession_message` for the name."""
    agent_id: JobId
    boot_id: Word
    hostname: Word


class EnrollReply(BaseModel):
    """Server to machine: this is what you are."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    credential_id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    name: Name
    queues: Annotated[list[Queue], Field(max_length=100)]
    team: Word | None = None
    expires_at: datetime | None = None
    """From when the credential is refused, unless it is replaced before; ``None``: never."""
    replaced: bool = False
    """Whether credentials of that name were valid before, and are not any more."""
    server_version: Word
    airflow_version: Word
