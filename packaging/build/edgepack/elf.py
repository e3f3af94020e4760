"""Which libraries of the system the compiled modules need: read from them, so that the dependency is what is true."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

from edgepack.faults import BuildError
from edgepack.target import Target

_DEB = {"libgcc_s.so.1": "libgcc-s1", "libstdc++.so.6": "libstdc++6 (>= 8)", "libz.so.1": "zlib1g"}
_SHARED_OBJECT = re.compile(r"\.so(\.\d+)*$")
_OF_THE_C_LIBRARY = re.compile(r"(libc|libm|libpthread|libdl|librt|libutil|ld-linux-[\w-]+)\.so\.\d+")


@dataclass(frozen=True, slots=True)
class Needs:
    """What the modules of one package need.

    :param glibc: the newest version of the C library that one of them asks for.
    :param libraries: other libraries of the system, by soname.
    """

    glibc: tuple[int, ...]
    libraries: tuple[str, ...]

    @property
    def deb_depends(self) -> list[str]:
        """Dependencies of a .deb."""
        if not self.glibc:
            return []
        return [f"libc6 (>= {_dotted(self.glibc)})", *(_DEB[name] for name in self.libraries)]

    @property
    def rpm_requires(self) -> list[str]:
        """Dependencies of an .rpm, by soname as RPM's own generators write them."""
        if not self.glibc:
            return []
        return [f"libc.so.6(GLIBC_{_dotted(self.glibc)})(64bit)", *(f"{name}()(64bit)" for name in self.libraries)]


def needs(tree: Path, target: Target) -> Needs:
    """Read all shared objects below ``tree``.

    :raises BuildError: one is for another machine, or needs a library that no dependency is known for.
    """
    glibc: tuple[int, ...] = ()
    libraries: set[str] = set()
    objects = sorted(path for path in tree.rglob("*.so*") if _SHARED_OBJECT.search(path.name))
    bundled = {path.name for path in objects}
    for path in objects:
        try:
            with path.open("rb") as file:
                elf = ELFFile(file)
                machine = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64"}.get(elf["e_machine"], elf["e_machine"])
                dynamic, versions = (elf.get_section_by_name(name) for name in (".dynamic", ".gnu.version_r"))
                wanted = _needed(dynamic) if isinstance(dynamic, DynamicSection) else []
                asked = _versions(versions) if isinstance(versions, GNUVerNeedSection) else []
        except ELFError as error:
            raise BuildError(f"{path.name}: is no shared object ({error})") from None
        if machine != target.machine:
            raise BuildError(f"{path.name}: is for {machine}, not for {target.machine}")
        for name in asked:
            if found := re.fullmatch(r"GLIBC_(\d+(?:\.\d+)+)", name):
                glibc = max(glibc, tuple(int(part) for part in found[1].split(".")))
        for name in wanted:
            if name in bundled or _OF_THE_C_LIBRARY.fullmatch(name):
                continue
            if name not in _DEB:
                raise BuildError(f"{path.name}: needs {name}, for which elf.py knows no package")
            libraries.add(name)
    return Needs(glibc, tuple(sorted(libraries)))


def _needed(section: DynamicSection) -> list[str]:
    # pyelftools gives a tag an attribute of its own for what it names.
    return [str(getattr(tag, "needed")) for tag in section.iter_tags("DT_NEEDED")]  # noqa: B009 -- it declares none


def _versions(section: GNUVerNeedSection) -> list[str]:
    return [str(version.name) for _, versions in section.iter_versions() for version in versions]


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
