"""What ``uv.lock`` pins, as requirement files with hashes."""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from edgepack.faults import run

_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)\s*(?:;\s*([^\\]+?))?\s*\\?$")


@dataclass(frozen=True, slots=True)
class Pins:
    """A set of locked distributions.

    :param text: the requirement file, with hashes.
    """

    text: str

    @property
    def constraints(self) -> list[str]:
        """``name==version ; marker`` for each, sorted."""
        found = [match for line in self.text.splitlines() if (match := _PIN.match(line))]
        return sorted(
            f"{name}=={version}" + (f" ; {marker}" if marker else "")
            for name, version, marker in (match.groups() for match in found)
        )

    def only(self, names: frozenset[str]) -> Pins:
        """Keep those of ``names``."""
        return self._filtered(names, keep=True)

    def without(self, names: frozenset[str]) -> Pins:
        """Leave out those of ``names``."""
        return self._filtered(names, keep=False)

    def _filtered(self, names: frozenset[str], *, keep: bool) -> Pins:
        lines, wanted = [], True
        for line in self.text.splitlines():
            match = _PIN.match(line)
            if match:
                wanted = (match[1] in names) == keep
            if wanted:
                lines.append(line)
        return Pins("\n".join(lines) + "\n")


def find_uv(root: Path) -> str:
    """Return uv: the one that ``UV`` names, the one that make has put into the tree, or the one on PATH."""
    own = root / ".tools/bin/uv"
    return os.environ.get("UV") or (str(own) if own.exists() else "uv")


class Lock:
    """The workspace's lock file.

    :param root: the folder that holds ``uv.lock``.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.uv = find_uv(root)
        """The program that wrote it."""
        with (root / "uv.lock").open("rb") as file:
            self._packages = tomllib.load(file)["package"]

    def of_package(self, name: str) -> Pins:
        """Return what a member of the workspace needs, without itself."""
        return self._export("--no-dev", "--package", name, "--no-emit-workspace")

    def of_group(self, name: str) -> Pins:
        """Return what a dependency group needs."""
        return self._export("--only-group", name)

    def version(self, name: str) -> str:
        """Return the locked version of a distribution."""
        return next(str(package["version"]) for package in self._packages if package["name"] == name)

    def only_as_source(self) -> frozenset[str]:
        """Return the distributions that the registry has no wheel of."""
        return frozenset(
            str(package["name"]) for package in self._packages if "sdist" in package and not package.get("wheels")
        )

    def _export(self, *selection: str) -> Pins:
        command = [self.uv, "export", "--quiet", "--frozen", "--no-annotate", "--no-header", *selection]
        return Pins(run(command, cwd=self._root))
