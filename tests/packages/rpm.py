"""A machine whose packages RPM manages: the builder's rpm, working on the booted machine's root.

Debian's rpm knows no distribution: dependencies on other packages are not checked (``--nodeps``). All scriptlets run,
in the machine's root, and reach the machine's systemd.
"""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from machine.nspawn import NspawnMachine

RPM_SECONDS = 300.0


@dataclass(frozen=True)
class Done:
    """One run of rpm: what it said, and its seconds."""

    said: list[str]
    seconds: float


class RpmMachine:
    """A machine, and what an administrator does with rpm there."""

    def __init__(self, guest: NspawnMachine) -> None:
        self.guest = guest

    def rpm(self, *arguments: str | Path) -> Done:
        """Run rpm on the machine's root."""
        began = time.monotonic()
        command = ["rpm", "--root", str(self.guest.path("/")), "--nodeps", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=RPM_SECONDS, check=False)
        # Debian's own advice on using rpm on Debian.
        said = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("rpm: ")]
        assert done.returncode == 0, said
        return Done(said, time.monotonic() - began)

    def query(self, *arguments: str) -> list[str]:
        """Ask rpm; its exit code is of no interest."""
        command = ["rpm", "--root", str(self.guest.path("/")), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
