"""What can be done inside a machine, however it is reached."""

from __future__ import annotations

import abc
import json
import subprocess
from typing import Any

from harness.waiting import wait_until

RUN_SECONDS = 60.0


class GuestError(RuntimeError):
    """Something inside the machine failed. The message holds the command, its exit code and the end of its output."""

    def __init__(self, message: str, code: int | None = None) -> None:
        self.code = code
        super().__init__(message)


class Guest(abc.ABC):
    """A machine with systemd as its first process."""

    @abc.abstractmethod
    def result(
        self, *argv: str, user: str | None = None, seconds: float = RUN_SECONDS, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, and return everything about its end.

        :param user: as whom, with all of their groups; root if none.
        :raises GuestError: it did not end in time.
        """

    @abc.abstractmethod
    def reboot(self) -> None:
        """Reboot it in good order, and wait until it is up again."""

    @staticmethod
    def as_user(user: str | None) -> list[str]:
        """Return what to put before a command to run it as a user, with all of their groups."""
        if user is None:
            return []
        group = "nogroup" if user == "nobody" else user
        # HOME stays root's, as with sudo: users who may not enter it must get along.
        return ["setpriv", f"--reuid={user}", f"--regid={group}", "--init-groups", "--"]

    @staticmethod
    def environment() -> list[str]:
        """Return what is set for commands inside."""
        return [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL=C.UTF-8",
            "HOME=/root",
            "SYSTEMD_PAGER=",
        ]

    def run(
        self,
        *argv: str,
        user: str | None = None,
        check: bool = True,
        seconds: float = RUN_SECONDS,
        stdin: str | None = None,
    ) -> str:
        """Run a command inside, and return its standard output.

        :param user: as whom, with all of their groups; root if none.
        :raises GuestError: it failed and ``check`` is set, or did not end in time.
        """
        done = self.result(*argv, user=user, seconds=seconds, stdin=stdin)
        if check and done.returncode != 0:
            said = (done.stderr or done.stdout).strip()[-1500:]
            raise GuestError(f"'{' '.join(argv)}' ended with {done.returncode}: {said}", done.returncode)
        return done.stdout

    def write(self, path: str, content: str, *, mode: str = "0644", owner: str = "root:root") -> None:
        """Write a file, and the folders to it."""
        script = 'mkdir -p "$(dirname "$1")" && umask 077 && cat > "$1" && chown "$3" "$1" && chmod "$2" "$1"'
        self.run("sh", "-c", script, "sh", path, mode, owner, stdin=content)

    def read(self, path: str) -> str:
        """Return a file's content."""
        return self.run("cat", path)

    # systemd

    def show(self, unit: str, name: str) -> str:
        """Return one property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).strip()

    def main_pid(self, unit: str) -> int:
        """Return the main process of a unit, by its number inside; 0 if there is none."""
        return int(self.show(unit, "MainPID"))

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """Return entries of the journal, oldest first."""
        lines = self.run("journalctl", "--no-pager", "-q", "--all", "-o", "json", *matches).splitlines()
        return [json.loads(line) for line in lines]

    def messages(self, *matches: str) -> list[str]:
        """Return the texts of entries of the journal."""
        return [str(entry.get("MESSAGE")) for entry in self.journal(*matches)]

    def wait_for_message(self, text: str, *matches: str, seconds: float = 60) -> str:
        """Wait until the journal holds a message with ``text`` in it, and return that message."""

        def found() -> str | None:
            return next((message for message in reversed(self.messages(*matches)) if text in message), None)

        message = wait_until(
            found,
            seconds=seconds,
            what=f"'{text}' in the journal ({' '.join(matches)})",
            poll_seconds=0.25,
            seen=lambda: self.messages(*matches)[-8:],
        )
        assert message is not None
        return message

    def wait_for_unit(self, unit: str, state: str, *, seconds: float = 60) -> None:
        """Wait until a unit is in an ActiveState."""
        wait_until(
            lambda: self.show(unit, "ActiveState") == state,
            seconds=seconds,
            what=f"{unit} to be {state}",
            seen=lambda: self.run("systemctl", "status", "--no-pager", "-n", "15", unit, check=False),
        )
