"""What all steps of one build share."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import tomllib
from dataclasses import dataclass
from email.utils import format_datetime
from pathlib import Path
from typing import Any

from edgepack import documents, sbom
from edgepack.faults import BuildError, run
from edgepack.lock import Lock
from edgepack.stage import Stage
from edgepack.target import Target


@dataclass(frozen=True, slots=True)
class Context:
    """One build.

    :param root: the source tree.
    :param work: an empty folder for staged files.
    :param epoch: the time that all files carry, in seconds.
    :param release: what tells builds of one version apart.
    """

    root: Path
    work: Path
    target: Target
    lock: Lock
    interpreter: Path
    epoch: int
    release: str
    description: dict[str, Any]
    deb_compression: str = "xz"

    def put_papers(self, stage: Stage, package: str, version: str, parts: list[sbom.Component]) -> None:
        """Put licences, bill of materials, changelog and Debian's papers into a package."""
        folder = f"/usr/share/doc/{package}"
        vendor = self.description["vendor"]
        digest = hashlib.sha256((self.root / "uv.lock").read_bytes()).hexdigest()
        bill = sbom.bill_of_materials(package, version, parts, epoch=self.epoch, lock_digest=digest)
        stage.write(f"{folder}/sbom.cdx.json", bill)
        sbom.copy_licences(parts, stage.path(f"{folder}/licences/x").parent)
        stage.copy(self.root / "LICENSE", f"{folder}/licences/LICENSE")
        for path in stage.path(f"{folder}/licences/x").parent.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        stage.write(f"{folder}/copyright", sbom.copyright_file(package, vendor.get("homepage", ""), parts))
        stamp = format_datetime(dt.datetime.fromtimestamp(self.epoch, dt.UTC))
        full = f"{version}-{self.release}.{self.target.tag}"
        changelog = f"{package} ({full}) unstable; urgency=medium\n\n  * What is new is in changelog.gz.\n\n"
        stage.write(
            f"{folder}/changelog.Debian.gz",
            documents.zipped(f"{changelog} -- {vendor['maintainer']}  {stamp}\n"),
            only="deb",
        )
        stage.write(
            f"{folder}/changelog.gz", documents.zipped((self.root / "CHANGELOG.md").read_text(encoding="utf-8"))
        )
        readme = self.root / "packaging" / package.removeprefix("airflow-edge-") / "README.Debian"
        if readme.exists():
            stage.copy(readme, f"{folder}/README.Debian")
        overrides = readme.with_name("lintian-overrides")
        if overrides.exists():
            stage.write(f"/usr/share/lintian/overrides/{package}", overrides.read_bytes(), only="deb")


def read_description(root: Path) -> dict[str, Any]:
    """Read ``packaging/packages.toml``.

    :raises BuildError: it is no TOML.
    """
    path = root / "packaging/packages.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise BuildError(f"{path}: {error}") from None


def source_date(root: Path) -> int:
    """Return the time that a build's files carry: ``SOURCE_DATE_EPOCH``, else that of the last commit.

    :raises BuildError: neither is known.
    """
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given is not None:
        if not given.isdigit():
            raise BuildError(f"SOURCE_DATE_EPOCH={given}: give seconds since 1970")
        return int(given)
    try:
        return int(run(["git", "-C", root, "log", "-1", "--format=%ct"]).strip())
    except (BuildError, ValueError):
        raise BuildError("the time of this source is not known: set SOURCE_DATE_EPOCH to seconds since 1970") from None
