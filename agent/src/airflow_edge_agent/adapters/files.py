"""Files of the agent: directories with safe modes, identities, atomic writes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import uuid
from pathlib import Path

from airflow_edge_agent.ports import StoreError

_RELAY_KEY_CHARS = 64

SOCKET_PATH_BYTES = 107
"""What fits into ``sockaddr_un`` on Linux, see unix(7)."""


def make_private_dir(path: Path) -> None:
    """Create a directory that is ours alone, and make sure we can write in it.

    :raises StoreError: if that is not possible.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = path / f".probe-{os.getpid()}"
        probe.touch(mode=0o600)
        probe.unlink()
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror}); give it to the agent's user") from None


def check_socket_path(path: Path) -> None:
    """Make sure that the kernel can take the path as a socket's name.

    :raises StoreError: it is too long.
    """
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        raise StoreError(f"{path}: too long for a socket's name; set runtime_dir to a shorter path, e.g. below /run")


def write_atomically(path: Path, content: str, *, sync: bool = True) -> None:
    """Write a file that is either as before or complete, even after a crash; mode 0600.

    :param sync: also after one of the host.
    :raises OSError: e.g. the disk is full; the old file is then unharmed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlive a crash of the host.

    :raises OSError: it cannot be done.
    """
    _sync(folder, os.O_DIRECTORY)


def sync_file(path: Path) -> None:
    """Make what is in a file outlive a crash of the host.

    :raises OSError: it cannot be done.
    """
    _sync(path)


def _sync(path: Path, flags: int = 0) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def agent_identity(state_dir: Path) -> str:
    """Return the identity of this state directory, making one the first time.

    :raises StoreError: it cannot be read or written.
    """
    path = state_dir / "identity.json"
    try:
        with contextlib.suppress(FileNotFoundError):
            return str(uuid.UUID(str(json.loads(path.read_text(encoding="utf-8"))["agent_id"])))
        agent_id = str(uuid.uuid4())
        write_atomically(path, json.dumps({"agent_id": agent_id}))
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise StoreError(f"{path}: is damaged; remove it to give this agent a new identity") from None
    return agent_id


def relay_key(state_dir: Path) -> bytes:
    """Return the key of the secrets that jobs show to the relay, making one the first time.

    :raises StoreError: it cannot be read or written.
    """
    path = state_dir / "relay.key"
    try:
        with contextlib.suppress(FileNotFoundError):
            key = path.read_text(encoding="ascii")
            # A short one is damaged. No job that would know it can be running after such a crash.
            if len(key) == _RELAY_KEY_CHARS:
                return key.encode("ascii")
        key = secrets.token_hex(_RELAY_KEY_CHARS // 2)
        write_atomically(path, key)
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: cannot be used ({error})") from None
    return key.encode("ascii")


def boot_identity() -> str:
    """Return an identity of the host's current boot."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return "unknown"


class DirectoryLock:
    """Keeps two daemons out of one state directory. Held until the process ends."""

    def __init__(self, state_dir: Path) -> None:
        """Take the lock.

        :raises StoreError: another daemon has it.
        """
        path = state_dir / "lock"
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"{state_dir}: another edge-agent is running here (pid {self._holder()}); give each its own state_dir"
            ) from None
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from None
        # For people only, and the disk may be full.
        with contextlib.suppress(OSError):
            os.truncate(self._fd, 0)
            os.write(self._fd, f"{os.getpid()}\n".encode())

    def _holder(self) -> str:
        with contextlib.suppress(OSError):
            return os.pread(self._fd, 20, 0).decode("ascii", errors="replace").strip() or "unknown"
        return "unknown"
