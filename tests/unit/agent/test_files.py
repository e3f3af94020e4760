"""Directories, identity and lock."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from airflow_edge_agent.adapters.files import (
    SOCKET_PATH_BYTES,
    DirectoryLock,
    agent_identity,
    boot_identity,
    check_socket_path,
    make_private_dir,
    write_atomically,
)
from airflow_edge_agent.ports import StoreError


def test_a_private_directory(tmp_path: Path) -> None:
    make_private_dir(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    make_private_dir(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("path", ["/proc/edge-agent", "/dev/null/state", "/dev/null"])
def test_a_directory_that_cannot_be_written(path: str) -> None:
    with pytest.raises(StoreError, match=path) as caught:
        make_private_dir(Path(path))
    assert "\n" not in str(caught.value)


def test_the_length_of_a_sockets_name() -> None:
    check_socket_path(Path("/" + "s" * (SOCKET_PATH_BYTES - 1)))
    with pytest.raises(StoreError, match="runtime_dir"):
        check_socket_path(Path("/" + "s" * SOCKET_PATH_BYTES))


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "one")
    assert path.stat().st_mode & 0o777 == 0o600
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from airflow_edge_agent.adapters.files import write_atomically\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_atomically(Path(sys.argv[1]), 'x' * 100_000)\n"
        "except OSError: print('full')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=False)
    assert done.stdout == "full\n", done.stderr
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_the_identity_stays(tmp_path: Path) -> None:
    first = agent_identity(tmp_path)
    assert str(uuid.UUID(first)) == first
    assert agent_identity(tmp_path) == first


def test_two_directories_are_two_agents(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    assert agent_identity(tmp_path / "a") != agent_identity(tmp_path / "b")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b'{"agent_id": 5}', b'{"agent_id": "x"}', b"\xff"])
def test_a_damaged_identity_is_not_replaced_by_stealth(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "identity.json").write_bytes(content)
    with pytest.raises(StoreError, match="new identity"):
        agent_identity(tmp_path)


def test_an_identity_that_cannot_be_written() -> None:
    with pytest.raises(StoreError):
        agent_identity(Path("/proc"))
    with pytest.raises(StoreError):
        agent_identity(Path("/dev/null"))


def test_the_boot_has_an_identity() -> None:
    assert boot_identity() == boot_identity() != ""


def test_a_second_daemon_is_kept_out_and_told_by_whom(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    with pytest.raises(StoreError, match=f"pid {os.getpid()}"):
        DirectoryLock(tmp_path)
    os.close(lock._fd)
    os.close(DirectoryLock(tmp_path)._fd)


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from airflow_edge_agent.adapters.files import DirectoryLock\n"
        "lock = DirectoryLock(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path], check=True)
    os.close(DirectoryLock(tmp_path)._fd)


def test_a_lock_where_there_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="lock"):
        DirectoryLock(tmp_path / "gone")


def test_a_full_disk_does_not_keep_the_daemon_from_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    lock = DirectoryLock(tmp_path)
    monkeypatch.undo()
    os.close(lock._fd)
