"""Machines under systemd-nspawn: a booted Debian that shares our kernel and our loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil

from harness.lasting import Lasting
from harness.processes import Keeper, Managed
from harness.waiting import wait_until
from machine.guest import RUN_SECONDS, Guest, GuestError

BOOT_SECONDS = 60.0
_REBOOT = 133
"""Exit code of systemd-nspawn when the machine wants to be started again."""
_CGROUPS = Path("/sys/fs/cgroup")
_PREFIX = "edge-machine-"
_NEW_SECONDS = 300.0
"""An empty cgroup younger than this may be that of a machine about to start."""
_NEEDED = ("systemd-nspawn", "unshare", "nsenter", "mmdebstrap")

# A mount namespace of its own, so that the overlay goes with the process, whatever ends it. A cgroup of its own, or two
# machines would take each other's units for theirs: nspawn with --keep-unit starts from the cgroup that it is in.
_LAUNCH = """\
set -e
for cgroup in $1; do echo $$ > "$cgroup/cgroup.procs"; done
mount --make-rprivate /
mount -t overlay overlay -o "$2" "$3"
shift 3
exec systemd-nspawn "$@"
"""


def missing() -> str | None:
    """Say why no machine can be booted here; ``None`` if nothing is in the way."""
    if os.geteuid() != 0:
        return "booting a machine needs root"
    if absent := [name for name in _NEEDED if shutil.which(name) is None]:
        return f"not installed: {', '.join(absent)} (on Debian: apt-get install systemd-container mmdebstrap)"
    with tempfile.TemporaryDirectory() as folder:
        for name in ("lower", "upper", "work", "merged"):
            (Path(folder) / name).mkdir()
        tried = subprocess.run(
            ["unshare", "--mount", "mount", "-t", "overlay", "overlay", "-o",
             "lowerdir=lower,upperdir=upper,workdir=work", "merged"],
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
    return f"an overlay cannot be mounted here: {tried.stderr.strip()}" if tried.returncode else None


class NspawnMachine(Lasting, Guest):
    """One machine; what it writes goes into ``folder``, and what it is made of stays as it is.

    :param folder: is created; holds the machine's changes and its console.
    :param layers: see :class:`machine.image.Images`, uppermost first.
    """

    def __init__(
        self, folder: Path, *, keeper: Keeper, layers: list[Path], prepare: Callable[[Path], None] | None = None
    ) -> None:
        self.folder = folder
        self.console = folder / "console.log"
        self._keeper = keeper
        self._layers = layers
        self._name = f"{_PREFIX}{uuid.uuid4().hex[:12]}"
        self._process: Managed | None = None
        self._leader: psutil.Process | None = None
        self._cgroups: list[Path] = []
        for name in ("upper", "work", "merged"):
            (folder / name).mkdir(parents=True)
        (folder / "upper").chmod(0o755)
        if prepare is not None:
            prepare(folder / "upper")

    # Life cycle

    def start(self) -> None:
        """Start the machine and wait until systemd says that all is started, or that something failed.

        :raises GuestError: it ended instead.
        """
        self._sweep()
        self._cgroups = [_CGROUPS / kind / self._name for kind in ("systemd", "unified") if (_CGROUPS / kind).is_dir()]
        if not self._cgroups:
            self._cgroups = [_CGROUPS / self._name]
        for cgroup in self._cgroups:
            cgroup.mkdir(exist_ok=True)
        lower = ":".join(map(str, self._layers))
        options = f"lowerdir={lower},upperdir={self.folder / 'upper'},workdir={self.folder / 'work'}"
        merged = self.folder / "merged"
        argv: list[str | Path] = [
            "unshare", "--mount", "sh", "-c", _LAUNCH, "sh", " ".join(map(str, self._cgroups)), options, merged,
            "--quiet", "--directory", merged, "--register=no", "--keep-unit", "--boot", f"--machine={self._name}",
            "--link-journal=no", "--console=pipe", "--resolv-conf=off", "--timezone=off",
        ]  # fmt: skip
        self._process = self._keeper.spawn(f"machine {self._name}", argv, env={}, cwd=self.folder, log=self.console)
        self._leader = wait_until(self._find_leader, seconds=BOOT_SECONDS, what="the machine's init", seen=self._tail)
        wait_until(self._started, seconds=BOOT_SECONDS, what="the machine to boot", seen=self._tail)

    def _started(self) -> bool:
        self._check()
        state = self.run("systemctl", "is-system-running", check=False)
        return state.strip() in {"running", "degraded"}

    def _check(self) -> None:
        if self._process is not None and not self._process.running:
            raise GuestError(f"the machine ended with exit code {self._process.exit_code}: {self._tail()}")

    def _find_leader(self) -> psutil.Process | None:
        self._check()
        assert self._process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._process.pid).children():
                # The first one below nspawn is only on its way to become the init.
                if child.name() == "systemd" and _pid_namespace(child.pid) != _pid_namespace(os.getpid()):
                    return child
        return None

    def _tail(self) -> str:
        return self._process.tail(5) if self._process is not None else ""

    def reboot(self) -> None:
        """Reboot it in good order, and wait until it is up again."""
        assert self._process is not None
        self.run("systemctl", "--no-block", "reboot")
        self._process.wait(BOOT_SECONDS * 2)
        if self._process.exit_code != _REBOOT:
            raise GuestError(f"the machine ended with exit code {self._process.exit_code}: {self._tail()}")
        self._remove_cgroups()
        self.start()

    def close(self) -> None:
        """End it, without waiting for anything inside to end well."""
        if self._process is not None and self._leader is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._leader.kill()
            self._process.stop(10)
        self._remove_cgroups()
        shutil.rmtree(Path("/run/systemd/nspawn/propagate") / self._name, ignore_errors=True)

    # Inside

    def result(
        self, *argv: str, user: str | None = None, seconds: float = RUN_SECONDS, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, and return everything about its end.

        :raises GuestError: it did not end in time.
        """
        assert self._leader is not None
        enter = ["nsenter", "-t", str(self._leader.pid), "-a", "-r", "-w", "--", "env", "-i", *self.environment()]
        try:
            return subprocess.run(
                [*enter, *self.as_user(user), *argv],
                input=stdin or "", capture_output=True, text=True, errors="replace", timeout=seconds, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise GuestError(f"'{' '.join(argv)}' did not end within {seconds:g} s") from None

    def path(self, inside: str) -> Path:
        """Return our path of a file of the running machine."""
        assert self._leader is not None
        return Path(f"/proc/{self._leader.pid}/root") / inside.lstrip("/")

    # Cgroups

    def _remove_cgroups(self) -> None:
        for cgroup in self._cgroups:
            wait_until(lambda cgroup=cgroup: _remove(cgroup), seconds=10, what=f"{cgroup} to be empty")  # type: ignore[misc]  # mypy cannot type the default of a lambda

    @staticmethod
    def _sweep() -> None:
        """Remove the cgroups that killed runs have left."""
        for events in [*_CGROUPS.glob(f"{_PREFIX}*/cgroup.events"), *_CGROUPS.glob(f"*/{_PREFIX}*/cgroup.events")]:
            cgroup = events.parent
            with contextlib.suppress(OSError):
                young = time.time() - cgroup.stat().st_ctime < _NEW_SECONDS
                if young or "populated 0" not in events.read_text():
                    continue
                for path in (_CGROUPS / cgroup.name, *_CGROUPS.glob(f"*/{cgroup.name}")):
                    _remove(path)


def _pid_namespace(pid: int) -> Path:
    return Path(f"/proc/{pid}/ns/pid").readlink()


def _remove(cgroup: Path) -> bool:
    """Remove a cgroup with all below it; ``False`` if something still runs there."""
    for folder, _, _ in os.walk(cgroup, topdown=False):
        try:
            Path(folder).rmdir()
        except OSError:
            return False
    return True
