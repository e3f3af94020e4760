"""The runner's sockets: where it listens, who may connect, what a predecessor or systemd hands over, and its locks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import socket
import struct
from collections.abc import Collection
from pathlib import Path

_BACKLOG = 16
_FIRST_INHERITED = 3
"""Descriptor at which systemd begins, see sd_listen_fds(3)."""

GENERATION_SOCKET = "runner-{pid}.sock"
"""In the runner's folder: where a runner that a successor has replaced can still be reached."""


class Taken(Exception):
    """Another runner is at work here. The message says where."""


class WrongSocket(Exception):
    """What was handed over, or named, cannot be used. The message says why."""


def inherited_by_systemd() -> int | None:
    """Return the listening socket that systemd has passed to this process, if it has; the variables are removed."""
    count, pid = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_PID", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit() or int(count) < 1:
        return None
    return _FIRST_INHERITED


def adopt(descriptor: int) -> socket.socket:
    """Take a listening socket that was handed over.

    :raises WrongSocket: it is none.
    """
    try:
        os.set_inheritable(descriptor, False)  # noqa: FBT003 -- it takes no name
        listener = socket.socket(fileno=descriptor)
        if listener.family != socket.AF_UNIX or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise WrongSocket("no listening unix socket was handed over")
    except OSError as error:
        raise WrongSocket(f"descriptor {descriptor} is no socket: {error.strerror}") from None
    listener.settimeout(0)
    return listener


def listen(path: Path, *, shared: bool) -> socket.socket:
    """Bind a socket. Whoever may call this may take the name: what stands there was left by a runner that died.

    :param shared: for the folder's group as well.
    :raises OSError: it cannot be bound.
    """
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o660 if shared else 0o600)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.settimeout(0)
    return listener


def lock(path: Path, what: Path, *, folder: bool = False) -> int:
    """Take a lock and return its descriptor, which a successor may inherit together with the lock.

    :param folder: ``path`` is a folder and is there.
    :raises Taken: another runner has it.
    :raises OSError: it cannot be opened.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY if folder else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Taken(f"another runner serves {what}") from None
    return descriptor


def peer_uid(connection: socket.socket) -> int:
    """Return the user at the other end of a unix socket."""
    size = struct.calcsize("3i")
    _pid, uid, _gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(uid)


def allowed_peers(uids: Collection[int], names: Collection[str]) -> frozenset[int]:
    """Return who may connect: root, and those named; without any, the runner's own user.

    The runner's own user is also its tasks': where the daemon has another one, they have no business here.

    :raises WrongSocket: there is no such user.
    """
    peers = set(uids)
    for name in names:
        try:
            peers.add(pwd.getpwnam(name).pw_uid)
        except KeyError:
            raise WrongSocket(f"--peer-user {name}: there is no such user") from None
    return frozenset(peers or {os.geteuid()}) | {0}


class Notifier:
    """Tells systemd how the runner is, if it was started by systemd. Its address is not left to tasks."""

    def __init__(self) -> None:
        """Take the address out of the environment."""
        self.address = os.environ.pop("NOTIFY_SOCKET", "")

    def send(self, text: str) -> None:
        """Send a state, e.g. ``READY=1``. Never raises."""
        if not self.address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
            to.sendto(text.encode(), self.address.replace("@", "\0", 1) if self.address[0] == "@" else self.address)
