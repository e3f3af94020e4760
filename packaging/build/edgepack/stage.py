"""A package's files as they will be installed, and the manifest for nfpm that is made from them."""

from __future__ import annotations

import datetime as dt
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Format = Literal["deb", "rpm"]
_DOCUMENTATION = ("/usr/share/doc/", "/usr/share/man/")


@dataclass(slots=True)
class Stage:
    """A folder that stands for ``/``.

    :param own: folders that belong to this package: its manager creates and removes them.
    """

    root: Path
    own: list[str] = field(default_factory=list)
    configuration: set[str] = field(default_factory=set)
    """Files that the administrator may edit, and that upgrades keep."""
    only: dict[str, Format] = field(default_factory=dict)
    """Files that packages of one format have."""
    modes: dict[str, int] = field(default_factory=dict)
    """Modes that are not those of the staged file."""

    def path(self, installed: str) -> Path:
        """Return where an installed path is staged, with its folder made."""
        path = self.root / installed.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write(self, installed: str, text: str | bytes, mode: int = 0o644, *, only: Format | None = None) -> None:
        """Write a file."""
        path = self.path(installed)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(mode)
        if only:
            self.only[installed] = only

    def copy(self, source: Path, installed: str, mode: int = 0o644) -> None:
        """Copy a file."""
        shutil.copyfile(source, self.path(installed))
        self.path(installed).chmod(mode)

    def folder(self, installed: str, mode: int = 0o755, *, only: Format | None = None) -> None:
        """Make a folder that is the package's own, though it may be empty."""
        self.path(installed + "/x")
        self.own.append(installed)
        self.modes[installed] = mode
        if only:
            self.only[installed] = only

    def link(self, installed: str, to: str) -> None:
        """Make a symbolic link."""
        self.path(installed).symlink_to(to)

    def contents(self, epoch: int, format_: Format) -> list[dict[str, Any]]:
        """Return nfpm's list of contents, sorted.

        :param epoch: modification time of everything, in seconds.
        """
        stamp = dt.datetime.fromtimestamp(epoch, dt.UTC).isoformat()
        entries = [self._entry(path, installed, stamp) for path, installed in self._walk()]
        if format_ == "rpm":
            # As rpmbuild does by itself: so that --nodocs leaves them out.
            for entry in entries:
                if "type" not in entry and entry["dst"].startswith(_DOCUMENTATION):
                    entry["type"] = "doc"
        return entries

    def size(self) -> tuple[int, int]:
        """Return bytes and number of all files."""
        files = [path for path, _ in self._walk() if path.is_file() and not path.is_symlink()]
        return sum(path.stat().st_size for path in files), len(files)

    def _walk(self) -> Iterator[tuple[Path, str]]:
        for path in sorted(self.root.rglob("*")):
            installed = f"/{path.relative_to(self.root).as_posix()}"
            is_folder = path.is_dir() and not path.is_symlink()
            if not is_folder or any(installed == own or installed.startswith(f"{own}/") for own in self.own):
                yield path, installed

    def _entry(self, path: Path, installed: str, stamp: str) -> dict[str, Any]:
        mode = self.modes.get(installed, stat.S_IMODE(path.lstat().st_mode))
        info: dict[str, Any] = {"owner": "root", "group": "root", "mtime": stamp}
        entry: dict[str, Any] = {"dst": installed, "file_info": info}
        if path.is_symlink():
            entry |= {"type": "symlink", "src": str(path.readlink())}
        elif path.is_dir():
            entry |= {"type": "dir"}
            info["mode"] = mode
        else:
            entry |= {"src": str(path)}
            info["mode"] = mode
            if installed in self.configuration:
                entry["type"] = "config|noreplace"
        if installed in self.only:
            entry["packager"] = self.only[installed]
        return entry
