"""The journal of systemd, in its native protocol: one datagram for each entry, fields and all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Mapping

SOCKET = "/run/systemd/journal/socket"
MAX_VALUE_BYTES = 1024 * 1024
"""Longer values are cut off."""


def connected_to_journal(fd: int) -> bool:
    """Tell whether systemd has connected this file descriptor to the journal (``JOURNAL_STREAM``)."""
    try:
        device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
        stat = os.fstat(fd)
        return (stat.st_dev, stat.st_ino) == (int(device), int(inode))
    except (OSError, ValueError):
        return False


class Journal:
    """Sends entries. Safe to use from several threads; never waits, never raises."""

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1024 * 1024)

    def send(self, fields: Mapping[str, str]) -> bool:
        """Send an entry; tell whether the journal has taken it.

        :param fields: names in capitals, as the journal wants them.
        """
        data = b"".join(_field(name, value) for name, value in fields.items())
        try:
            self._socket.sendto(data, self._path)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                return False
            return self._send_large(data)
        return True

    def _send_large(self, data: bytes) -> bool:
        """Send what does not fit into a datagram as a sealed file in memory."""
        try:
            fd = os.memfd_create("journal-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError:
            return False
        try:
            with os.fdopen(os.dup(fd), "wb") as file:
                file.write(data)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))]
            self._socket.sendmsg([b""], rights, 0, self._path)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", errors="replace")[:MAX_VALUE_BYTES]
    key = name.encode("ascii", errors="replace")
    if b"\n" not in data:
        return key + b"=" + data + b"\n"
    return key + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
