"""A small init: starts commands, and lets none of them, nor anything they start, outlive it.

It is a child subreaper, so whatever loses its parent below it (an agent's runner, for one, has a session of its own)
becomes its child: "all is gone" is then simply "no child is left". It ends when its standard input does, which also
happens when the harness is killed.

Runs as a program of its own, with nothing but the standard library. Standard input takes one JSON object per line:
``{"id", "argv", "env", "cwd", "log"}`` starts a command with its output appended to the file ``log``. Standard output
answers with ``{"id", "pid"}``, ``{"id", "error"}``,
``{"id", "exit"}`` and ``{"reaped": [names of what had to be killed]}``.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
GRACE_SECONDS = 4.0
"""How long what runs may take to end by itself after SIGTERM."""


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}): {os.strerror(error)}")


def _say(**message: Any) -> None:
    # Nobody may listen any more; the commands still have to be ended then.
    try:
        os.write(1, json.dumps(message).encode() + b"\n")
    except OSError:
        return


class Keeper:
    """What the program knows: the commands it started, by their process id."""

    def __init__(self) -> None:
        self._ids: dict[int, int] = {}

    def spawn(self, request: dict[str, Any]) -> None:
        """Start one command, in a session of its own."""
        try:
            with Path(request["log"]).open("ab") as log:
                process = subprocess.Popen(
                    request["argv"],
                    env=request["env"],
                    cwd=request["cwd"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    # Last resort, should this program itself be killed. It has one thread only, so this is safe.
                    preexec_fn=lambda: _prctl(PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509
                )
        except OSError as error:
            _say(id=request["id"], error=f"{request['argv'][0]}: {error.strerror or error}")
            return
        self._ids[process.pid] = request["id"]
        # Reaped by number below; the object must not wait for it as well.
        process.returncode = 0
        _say(id=request["id"], pid=process.pid)

    def reap(self) -> bool:
        """Collect what has ended; tell whether anything is still running."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid in self._ids:
                _say(id=self._ids.pop(pid), exit=os.waitstatus_to_exitcode(status))

    def end_all(self) -> None:
        """End everything below this process: politely first, then for good."""
        polite_until = time.monotonic() + GRACE_SECONDS
        asked: set[int] = set()
        killed: dict[int, str] = {}
        while self.reap():
            late = time.monotonic() > polite_until
            for pid, name in _children():
                # Only children: what they leave behind becomes a child in turn, and has its own chance to end well.
                if late:
                    killed[pid] = name
                elif pid in asked:
                    continue
                asked.add(pid)
                _signal(pid, signal.SIGKILL if late else signal.SIGTERM)
            time.sleep(0.05)
        _say(reaped=sorted(killed.values()))


def _children() -> list[tuple[int, str]]:
    """Process ids and names of this process's children that have not ended yet."""
    own, found = os.getpid(), []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text(errors="replace")
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        state, parent = stat.rpartition(")")[2].split()[:2]
        if int(parent) == own and state != "Z":
            found.append((int(entry.name), command[:200]))
    return found


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def main() -> None:
    """Serve until standard input ends, then end everything."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    wake_out, wake_in = os.pipe()
    os.set_blocking(wake_in, False)
    os.set_blocking(wake_out, False)
    signal.set_wakeup_fd(wake_in, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    keeper, buffer = Keeper(), b""
    while True:
        ready, _, _ = select.select([0, wake_out], [], [])
        if wake_out in ready:
            os.read(wake_out, 4096)
            keeper.reap()
        if 0 in ready:
            data = os.read(0, 1 << 16)
            if not data:
                break
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                keeper.spawn(json.loads(line))
    keeper.end_all()


if __name__ == "__main__":
    main()
