"""Who may be enrolled as what, what an agent may serve, and when its credential has to be replaced."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from datetime import datetime

MAX_USES = 10_000
MAX_QUEUES = 100

_PATTERN = re.compile(r"[A-Za-z0-9*?][A-Za-z0-9._*?-]{0,62}")
_WILD = re.compile(r"[*?]")


def is_name_pattern(pattern: str) -> bool:
    """Tell whether this is the name of an agent, or a pattern of names with ``*`` (anything) and ``?`` (one letter)."""
    return _PATTERN.fullmatch(pattern) is not None


def names_one(pattern: str) -> bool:
    """Tell whether the pattern is one name."""
    return _WILD.search(pattern) is None


def matches(pattern: str, name: str) -> bool:
    """Tell whether a name is one of the pattern's."""
    words = {"*": ".*", "?": "."}
    return re.fullmatch("".join(words.get(part, re.escape(part)) for part in pattern), name) is not None


@dataclass(frozen=True, slots=True)
class Joining:
    """What a join token allows."""

    name_pattern: str
    uses_left: int
    expires_at: datetime
    revoked: bool


def joining_fault(token: Joining, now: datetime, *, again: bool = False) -> str | None:
    """Return why the token lets nobody in any more; ``None``: it does.

    :param again: whether it has let in the one who asks, who has perhaps not heard of it: that is no other use.
    """
    if token.revoked:
        return "was revoked"
    if now >= token.expires_at:
        return f"expired at {token.expires_at:%Y-%m-%d %H:%M} UTC"
    if token.uses_left < 1 and not again:
        return "has been used as often as it may be"
    return None


def name_fault(token: Joining, name: str, *, taken: bool) -> str | None:
    """Return why the token does not make its bearer the agent of that name; ``None``: it does.

    :param taken: whether an agent of that name has a valid credential. A token for one name replaces it. One for many
        does not: whoever holds it could otherwise become any agent that there is.
    """
    if not matches(token.name_pattern, name):
        return f"this join token is for agents named {token.name_pattern!r}, not {name!r}"
    if taken and not names_one(token.name_pattern):
        return (
            f"an agent named {name!r} is enrolled already, and a join token for many names does not replace it: make "
            f"one with --name {name}, or revoke the agent first"
        )
    return None


def enroll_command(server_url: str, name_pattern: str) -> str:
    """Return the command that makes a new machine an agent. The join token is typed in, never part of it.

    :param server_url: base URL of the api-server, as the machine reaches it.
    :param name_pattern: of the join token; from one for many names, the machine takes its host name.
    """
    name = f" --name {name_pattern}" if names_one(name_pattern) else ""
    return f"edgectl enroll {shlex.quote(server_url.rstrip('/'))}{name}"


def is_rotation_due(created_at: datetime, expires_at: datetime | None, now: datetime) -> bool:
    """Tell whether a credential is to be replaced: half of its life is over."""
    return expires_at is not None and now >= created_at + (expires_at - created_at) / 2


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a credential is used."""

    agent_id: str | None
    boot_id: str | None
    hostname: str | None

    def __str__(self) -> str:
        return f"host {self.hostname} (agent id {self.agent_id}, boot id {self.boot_id})"


def is_elsewhere(known: Machine, found: Machine) -> bool:
    """Tell whether a credential is used on another machine than before.

    A reboot changes the boot, and somebody may rename a host; only both together are another machine. Another state
    directory always is: a credential lives in one, and does not leave it by itself.
    """
    if known.agent_id is None:
        return False
    if known.agent_id != found.agent_id:
        return True
    return known.boot_id != found.boot_id and known.hostname != found.hostname
