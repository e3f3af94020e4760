"""What a package is built for: a Python, and a processor."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgepack.faults import BuildError

_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_FIRST_MINOR = 11
_OLDEST_GLIBC = "manylinux_2_28"
"""Wheels may ask for no newer C library: that of RHEL 8; Debian 12 has 2.36."""


@dataclass(frozen=True, slots=True)
class Target:
    """A distribution's own Python on one kind of machine.

    :param python: major and minor.
    :param arch: as Debian calls it.
    """

    python: tuple[int, int]
    arch: str

    @classmethod
    def parse(cls, python: str, arch: str) -> Target:
        """Check what the command line says.

        :raises BuildError: there are no such packages.
        """
        found = re.fullmatch(r"3\.(\d{1,2})", python)
        if found is None or int(found[1]) < _FIRST_MINOR:
            raise BuildError(f"--python {python}: give a minor version from 3.11 on, like 3.11 or 3.13")
        if arch not in _MACHINES:
            raise BuildError(f"--arch {arch}: give one of {', '.join(_MACHINES)}")
        return cls((3, int(found[1])), arch)

    @property
    def version(self) -> str:
        """Like ``3.11``."""
        return f"{self.python[0]}.{self.python[1]}"

    @property
    def interpreter(self) -> str:
        """Where the distribution has it; with its minor version, since the bytecode is for this one alone."""
        return f"/usr/bin/python{self.version}"

    @property
    def tag(self) -> str:
        """The part of a package's release that tells builds for several Pythons apart; sorts as they do."""
        return f"py{self.python[0]}{self.python[1]}"

    @property
    def machine(self) -> str:
        """As the kernel and RPM call it."""
        return _MACHINES[self.arch]

    @property
    def wheels(self) -> str:
        """The platform whose wheels fit, as uv calls it."""
        return f"{self.machine}-{_OLDEST_GLIBC}"

    @property
    def deb_depends(self) -> list[str]:
        """The dependency on Python of a .deb."""
        return [f"python3 (>= {self.version}~)", f"python3 (<< 3.{self.python[1] + 1}~)"]

    @property
    def rpm_requires(self) -> list[str]:
        """The dependency on Python of an .rpm: provided by ``python3``, or ``python3.11`` beside another one."""
        return [f"python(abi) = {self.version}"]
