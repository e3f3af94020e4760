"""Roots for machines, in layers: Debian, the agent's dependencies, the task runtime, and our own files on top.

A layer is a folder, named by a hash of what it is made from, and stays until its recipe changes. Machines mount layers
as an overlay, so booting one copies nothing. Building needs root, mmdebstrap and uv.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
"""The clone of the project."""

AGENT_HOME = "usr/lib/airflow-edge-agent"
RUNTIME_HOME = "opt/airflow-edge-runtime"
MIRROR = os.environ.get("EDGE_TEST_MIRROR", "http://deb.debian.org/debian")
KEEP_SECONDS = 24 * 3600.0
"""A layer that nothing names any more stays this long: another run of the tests may be using it."""

_PACKAGES = ("systemd", "systemd-sysv", "dbus", "python3", "ca-certificates", "procps", "util-linux")
_KERNEL_PACKAGES = ("kmod", "udev", "initramfs-tools", "linux-image-cloud-amd64")
_SMALL_INITRD = (
    'mkdir -p "$1/etc/initramfs-tools/conf.d"; echo MODULES=list > "$1/etc/initramfs-tools/conf.d/modules"; '
    'printf "virtio_pci\\nvirtio_blk\\next4\\n" > "$1/etc/initramfs-tools/modules"'
)
_UNIT_SUFFIXES = (".service", ".socket", ".slice")
_FOLDERS = {
    # In the source -> on the machine.
    "sysusers.d": "usr/lib/sysusers.d",
    "tmpfiles.d": "usr/lib/tmpfiles.d",
    "system-preset": "usr/lib/systemd/system-preset",
    "needrestart": "etc/needrestart/conf.d",
    "catalog": "usr/lib/systemd/catalog",
    "bin": "usr/bin",
}
_FIRST_SYSTEMD_OF_NEWER = 254
"""What is in ``systemd/newer`` is for this version of systemd and later ones."""

_SCRIPT = """\
#!/{home}/bin/python -I
import sys
from {module} import main
sys.exit(main())
"""
_PROGRAMS = {"edge-agent": "airflow_edge_agent.main", "edgectl": "airflow_edge_agent.ctl.main"}


class ImageError(RuntimeError):
    """A root could not be built. The message names the step and holds the end of its output."""


@dataclass(frozen=True)
class Release:
    """A release of Debian, with what of it matters here."""

    suite: str
    python: str
    systemd: int


BOOKWORM = Release("bookworm", "3.11", 252)
TRIXIE = Release("trixie", "3.13", 257)


class Images:
    """Builds layers below a folder, and finds them again.

    :param progress: is told, in a few words, what is being built.
    """

    def __init__(self, folder: Path, *, progress: Callable[[str], None] = lambda _: None) -> None:
        self._folder = folder.resolve()
        self._progress = progress
        self._uv = os.environ.get("UV") or shutil.which("uv") or "uv"
        folder.mkdir(parents=True, exist_ok=True)

    def base(self, release: Release, *, bootable: bool = False, also: tuple[str, ...] = ()) -> Path:
        """Return plain Debian with systemd, and with a kernel if ``bootable``.

        :param also: names of further packages of Debian's.
        :raises ImageError: it could not be built.
        """
        names = (*_PACKAGES, *(_KERNEL_PACKAGES if bootable else ()), *also)
        hooks = [f"--setup-hook={_SMALL_INITRD}"] if bootable else []
        kind = "-".join((*(("kernel",) if bootable else ()), *also)) or "base"
        return self._debian(f"{release.suite}-{kind}", release, names, hooks)

    def _debian(self, name: str, release: Release, names: Sequence[str], hooks: Sequence[str] = ()) -> Path:
        included = ",".join(names)

        def make(layer: Path) -> None:
            # A folder straight from mmdebstrap would carry the mode of its parent.
            tar = layer.with_suffix(".tar")
            _run(
                "mmdebstrap", "mmdebstrap", "--variant=minbase", f"--include={included}", *hooks, release.suite, tar,
                MIRROR,
            )  # fmt: skip
            _run("tar", "tar", "-C", layer, "-xf", tar)
            tar.unlink()

        return self._layer(name, [included, MIRROR, *hooks], make)

    def plain(self, release: Release, also: tuple[str, ...]) -> Path:
        """Return a Debian without any init, as container images are.

        :param also: names of packages beside the essential ones.
        :raises ImageError: it could not be built.
        """
        return self._debian(f"{release.suite}-plain", release, ("python3", "ca-certificates", "util-linux", *also))

    def agent(self, release: Release, *, bootable: bool = False, with_runtime: bool = True) -> list[Path]:
        """Return the layers of a machine with the agent installed and never started, uppermost first.

        :param bootable: with a kernel of its own.
        :param with_runtime: with the environment that tasks run in, which takes longest to build.

        :raises ImageError: one of them could not be built.
        """
        base = self.base(release)
        key = [base.name, _tree_hash([SOURCE / "uv.lock"])]
        site = f"lib/python{release.python}/site-packages"

        def dependencies(layer: Path) -> None:
            requirements = self._export(layer, "--package", "airflow-edge-agent", "--no-dev", "--no-emit-workspace")
            self._environment(layer / AGENT_HOME, release, ["-r", str(requirements)])
            _in_root([layer, base], f"python3 -m compileall -q -j0 /{AGENT_HOME}")

        def runtime(layer: Path) -> None:
            requirements = self._export(layer, "--only-group", "runtime")
            self._environment(layer / RUNTIME_HOME, release, ["-r", str(requirements)])
            _in_root([layer, base], f"python3 -m compileall -q -j0 /{RUNTIME_HOME}")

        def ours(layer: Path) -> None:
            package = layer / AGENT_HOME / site / "airflow_edge_agent"
            shutil.copytree(
                SOURCE / "agent/src/airflow_edge_agent", package, ignore=shutil.ignore_patterns("__pycache__")
            )
            for name, module in _PROGRAMS.items():
                _write(layer / "usr/bin" / name, _SCRIPT.format(home=AGENT_HOME, module=module), 0o755)
            install_units(layer, release.systemd)
            # What the packages' scripts do: users, and nothing started.
            script = "systemd-sysusers && systemctl preset edge-agent.service && journalctl --update-catalog"
            _in_root(
                [layer, agent, bottom], f"{script} && python3 -m compileall -q /{AGENT_HOME}/{site}/airflow_edge_agent"
            )

        agent = self._layer(f"{release.suite}-dependencies", key, dependencies)
        tasks = [self._layer(f"{release.suite}-runtime", key, runtime)] if with_runtime else []
        bottom = self.base(release, bootable=True) if bootable else base
        ours_key = [*key, bottom.name, _tree_hash([SOURCE / "agent/src", SOURCE / "systemd", Path(__file__)])]
        name = f"{release.suite}-{'kernel-' if bootable else ''}agent"
        return [self._layer(name, ours_key, ours), *tasks, agent, bottom]

    def _layer(self, name: str, key: list[str], make: Callable[[Path], None]) -> Path:
        digest = hashlib.sha256("\0".join(key).encode()).hexdigest()[:16]
        layer = self._folder / f"{name}-{digest}"
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not layer.exists():
                self._forget(name)
                self._progress(f"building {name}")
                # In a folder of its own, which has the name of a layer only when it is complete.
                with tempfile.TemporaryDirectory(
                    dir=self._folder, prefix="build-", ignore_cleanup_errors=True
                ) as build:
                    unfinished = Path(build) / "layer"
                    unfinished.mkdir(mode=0o755)
                    make(unfinished)
                    unfinished.rename(layer)
            os.utime(layer)
        return layer

    def _forget(self, name: str) -> None:
        for old in self._folder.glob(f"{name}-*"):
            if time.time() - old.stat().st_mtime > KEEP_SECONDS:
                shutil.rmtree(old, ignore_errors=True)

    def _export(self, layer: Path, *arguments: str) -> Path:
        requirements = layer.parent / "requirements.txt"
        _run("uv export", self._uv, "export", "-q", "--frozen", "--project", SOURCE, *arguments, "-o", requirements)
        return requirements

    def _environment(self, home: Path, release: Release, wanted: list[str]) -> None:
        """Make a virtual environment for the machine's own Python, from outside and without running it."""
        _write(home / "pyvenv.cfg", "home = /usr/bin\ninclude-system-site-packages = false\n", 0o644)
        (home / "bin").mkdir()
        (home / "bin/python").symlink_to("/usr/bin/python3")
        _run(
            "uv pip install", self._uv, "pip", "install", "-q", "--no-deps", "--link-mode", "copy",
            "--python-version", release.python, "--python-platform", "x86_64-unknown-linux-gnu",
            "--target", home / f"lib/python{release.python}/site-packages", *wanted,
        )  # fmt: skip


def install_units(root: Path, systemd: int) -> None:
    """Put everything of ``systemd/`` where a package would, below ``root``."""
    source = SOURCE / "systemd"
    for path in source.iterdir():
        if path.suffix in _UNIT_SUFFIXES:
            _write(root / "usr/lib/systemd/system" / path.name, path.read_text(), 0o644)
    for folder, target in _FOLDERS.items():
        for path in (source / folder).glob("*"):
            _write(root / target / path.name, path.read_text(), 0o755 if folder == "bin" else 0o644)
    if systemd >= _FIRST_SYSTEMD_OF_NEWER:
        for path in (source / "newer").glob("*/*.conf"):
            _write(root / "usr/lib/systemd/system" / path.parent.name / path.name, path.read_text(), 0o644)


def _write(path: Path, text: str, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _tree_hash(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for top in paths:
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(SOURCE)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _run(step: str, *argv: str | Path) -> None:
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ImageError(f"{step}: {argv[0]} is not installed") from None
    if done.returncode != 0:
        raise ImageError(f"{step} failed with exit code {done.returncode}: {(done.stderr or done.stdout)[-2000:]}")


def _in_root(layers: list[Path], script: str) -> None:
    """Run a script as root in a root made of layers; what it writes goes into the uppermost one.

    The mounts are in a namespace of their own and go with it.
    """
    top, lower = layers[0], layers[1:]
    work = top.parent / "work"
    merged = top.parent / "merged"
    for folder in (work, merged):
        folder.mkdir(exist_ok=True)
    mount = f"lowerdir={':'.join(map(str, lower))},upperdir={top},workdir={work}"
    inside = 'set -e; mount -t overlay overlay -o "$1" "$2"; mount -t proc proc "$2/proc"; exec chroot "$2" sh -ec "$3"'
    _run(
        "building in the root",
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "sh",
        "-c",
        inside,
        "sh",
        mount,
        merged,
        script,
    )
