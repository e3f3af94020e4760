"""Roots without an init: what a container engine makes of an image, made by systemd-nspawn."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path

from harness.processes import Keeper, Managed
from machine.guest import GuestError

# A mount namespace of its own, so that the overlay goes with the process, whatever ends it.
_LAUNCH = """\
set -e
mount --make-rprivate /
mount -t overlay overlay -o "$1" "$2"
shift 2
exec systemd-nspawn "$@"
"""
# As --init does: a first process that reaps.
_OPTIONS = (
    "--quiet", "--register=no", "--keep-unit", "--as-pid2", "--link-journal=no", "--console=pipe", "--resolv-conf=off",
    "--timezone=off",
)  # fmt: skip


def instructions(recipe: Path, name: str) -> list[str]:
    """Return the arguments of all instructions of a kind in a Containerfile, with continued lines put together."""
    lines = [line for line in recipe.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [line.removeprefix(f"{name} ").strip() for line in text.splitlines() if line.startswith(f"{name} ")]


class Root:
    """A root made of layers; what is written goes into the folder ``upper``, which can be a layer of the next one."""

    def __init__(self, folder: Path, layers: list[Path]) -> None:
        self.folder = folder
        self.upper = folder / "upper"
        self._name = f"edge-container-{uuid.uuid4().hex[:12]}"
        self._layers = layers
        for name in ("upper", "work", "merged"):
            (folder / name).mkdir(parents=True)
        self.upper.chmod(0o755)

    def put(self, source: Path, inside: str, mode: int = 0o644) -> None:
        """Copy a file into it."""
        path = self.upper / inside.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)
        path.chmod(mode)

    def command(self, *argv: str, options: tuple[str, ...] = ()) -> list[str]:
        """Return what runs a program as process 2 of a container."""
        lower = ":".join(map(str, self._layers))
        mount = f"lowerdir={lower},upperdir={self.upper},workdir={self.folder / 'work'}"
        merged = str(self.folder / "merged")
        launch = ["unshare", "--mount", "sh", "-c", _LAUNCH, "sh", mount, merged]
        return [*launch, *_OPTIONS, f"--machine={self._name}", "--directory", merged, *options, "--", *argv]

    def run(self, *argv: str, seconds: float = 300) -> str:
        """Run a program to its end, as root, and return what it printed.

        :raises GuestError: it failed.
        """
        done = subprocess.run(self.command(*argv), capture_output=True, text=True, timeout=seconds, check=False)
        self.tidy()
        if done.returncode:
            raise GuestError(f"{shlex.join(argv)} ended with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
        return done.stdout

    def start(self, keeper: Keeper, *argv: str, variables: Mapping[str, str], options: tuple[str, ...] = ()) -> Managed:
        """Start a program, and let it run."""
        given = tuple(f"--setenv={name}={value}" for name, value in variables.items())
        command = self.command(*argv, options=(*options, *given))
        return keeper.spawn("container", command, env={}, cwd=self.folder, log=self.folder / "log")

    def tidy(self) -> None:
        """Remove what systemd-nspawn leaves of a container that has ended."""
        shutil.rmtree(Path("/run/systemd/nspawn/propagate") / self._name, ignore_errors=True)
