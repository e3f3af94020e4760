"""A folder of installed distributions: filled from locked wheels, cut down, and the same on each build."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepack.faults import BuildError, run
from edgepack.lock import Lock, Pins
from edgepack.target import Target

_NOT_OURS_TO_TELL = ("RECORD", "REQUESTED", "direct_url.json", "uv_build.json", "uv_cache.json", "WHEEL")
"""Of an installer, or about a file that was downloaded; the package manager keeps its own list of files."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A distribution that is locked, and whose files are not in the package."""

    name: str
    version: str


def install(pins: Pins, site: Path, target: Target, *, lock: Lock, scratch: Path) -> None:
    """Install locked distributions for ``target`` into ``site``; no code of theirs is run, unless they have no wheel.

    :raises BuildError: the registry does not have them, or hashes differ.
    """
    sources = lock.only_as_source()
    scratch.mkdir(parents=True, exist_ok=True)
    # Copied, not linked: uv's cache must not see what is done to the files.
    command = [lock.uv, "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--link-mode", "copy"]
    command += ["--no-config", "--target", str(site)]
    command += ["--python-version", target.version, "--python-platform", target.wheels]
    for number, (part, options) in enumerate(((pins.without(sources), ["--no-build"]), (pins.only(sources), []))):
        if part.constraints:
            file = scratch / f"requirements-{number}.txt"
            file.write_text(part.text, encoding="utf-8")
            run([*command, *options, "--requirement", str(file)])


def make(folder: Path, interpreter: str, target: Target) -> None:
    """Make a folder a virtual environment, without running anything.

    :param interpreter: what its Python is a link to.
    """
    (folder / "bin").mkdir()
    (folder / "bin/python").symlink_to(interpreter)
    for name in ("python3", f"python{target.version}"):
        (folder / "bin" / name).symlink_to("python")
    text = f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {target.version}\n"
    (folder / "pyvenv.cfg").write_text(text, encoding="utf-8")


def leave_out(site: Path, names: frozenset[str]) -> list[LeftOut]:
    """Remove distributions by name; return which they were.

    :raises BuildError: one is not there, so that the description is stale.
    """
    gone = []
    for distribution in list(importlib.metadata.distributions(path=[str(site)])):
        if canonical(distribution.name) not in names:
            continue
        gone.append(LeftOut(canonical(distribution.name), distribution.version))
        for file in distribution.files or []:
            path = Path(str(distribution.locate_file(file)))
            if path.is_relative_to(site):
                path.unlink(missing_ok=True)
    if stale := names - {item.name for item in gone}:
        raise BuildError(f"packages.toml leaves out what is not locked: {', '.join(sorted(stale))}")
    _remove_empty_folders(site)
    return sorted(gone, key=lambda item: item.name)


def leave_out_files(site: Path, patterns: Sequence[str]) -> None:
    """Remove files and folders.

    :raises BuildError: a pattern matches nothing, so that the description is stale.
    """
    for pattern in patterns:
        found = sorted(site.glob(pattern))
        if not found:
            raise BuildError(f"packages.toml leaves out '{pattern}', which matches nothing")
        for path in found:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    _remove_empty_folders(site)


def normalise(site: Path) -> None:
    """Remove what tells of the installation, and set the modes that files of a package have."""
    for name in ("bin", ".lock", "share", "etc"):
        path = site / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for cache in list(site.rglob("__pycache__")):
        shutil.rmtree(cache)
    for info in site.glob("*.dist-info"):
        for name in _NOT_OURS_TO_TELL:
            (info / name).unlink(missing_ok=True)
        # pip then says who has to be asked to remove or to change it.
        (info / "INSTALLER").write_text("the system's package manager\n", encoding="utf-8")
    _remove_empty_folders(site)
    set_modes(site)


def set_modes(root: Path) -> None:
    """Make everything readable by all and writable by its owner; nothing in a library is a program."""
    root.chmod(0o755)
    for path in root.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)


def canonical(name: str) -> str:
    """Return a distribution's name as PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _remove_empty_folders(root: Path) -> None:
    for path in sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True):
        if not any(path.iterdir()):
            path.rmdir()
