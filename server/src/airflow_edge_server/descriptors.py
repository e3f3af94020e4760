"""How many files this process may open: each connection of an agent is one."""

from __future__ import annotations

import resource

_SPARE = 256
"""For the database, logs, what listens, and files that are opened for a moment."""


def make_room(connections: int) -> str | None:
    """Raise this process's own limit as far as it may, for so many connections.

    Many systems start processes with a limit of 1,024 and allow far more to those that ask.

    :return: what is wrong, in one line, if fewer connections than that are possible.
    """
    wanted = connections + _SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return None
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(allowed, soft), hard))
    if allowed >= wanted:
        return None
    return (
        f"[edge_agent] max_connections is {connections}, but this process may open no more than {hard} files: "
        f"raise its limit (LimitNOFILE= of a systemd unit, ulimit -Hn) to {wanted}"
    )
