"""What is bundled: a CycloneDX bill of materials, the licences' texts, and Debian's copyright file."""

from __future__ import annotations

import datetime as dt
import email.message
import fnmatch
import importlib.metadata
import json
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from edgepack.environment import canonical

_NAMESPACE = uuid.UUID("3f0c2b5e-6f55-4c0e-9a0e-0d6f6f1d7a11")
_LICENCE_FILES = ("licen[cs]e*", "copying*", "notice*", "authors*")
_LONGEST_NAME = 80
"""Characters; a licence field that is longer holds the licence's text."""


@dataclass(frozen=True, slots=True)
class Component:
    """One distribution inside a package."""

    name: str
    version: str
    licence: str
    summary: str
    home: str
    info: Path

    @property
    def purl(self) -> str:
        """Its package URL."""
        return f"pkg:pypi/{self.name}@{self.version}"


def components(site: Path) -> list[Component]:
    """Return what is installed in ``site``, sorted by name."""
    return sorted(_read(site), key=lambda item: item.name)


def _read(site: Path) -> Iterator[Component]:
    for distribution in importlib.metadata.distributions(path=[str(site)]):
        meta = cast("email.message.Message", distribution.metadata)
        name = canonical(meta["Name"])
        urls = dict(line.split(", ", 1) for line in meta.get_all("Project-URL") or [] if ", " in line)
        home = meta.get("Home-page") or next(
            (urls[key] for key in ("Homepage", "Source", "Repository") if key in urls), ""
        )
        found = [path for path in site.glob("*.dist-info") if canonical(path.name.split("-", 1)[0]) == name]
        yield Component(
            name=name,
            version=distribution.version,
            licence=_licence(meta),
            summary=meta.get("Summary") or "",
            home=home,
            info=found[0],
        )


def _licence(meta: email.message.Message) -> str:
    """Return the SPDX expression if there is one, else what the metadata says in words."""
    if expression := meta.get("License-Expression"):
        return str(expression)
    classifiers = [line.rsplit(" :: ", 1)[1] for line in meta.get_all("Classifier") or [] if line.startswith("License")]
    words = str(meta.get("License") or "").strip()
    if words and len(words) <= _LONGEST_NAME and "\n" not in words:
        return words
    return " or ".join(classifiers) or "see the text of its licence"


def bill_of_materials(name: str, version: str, parts: list[Component], *, epoch: int, lock_digest: str) -> str:
    """Write a CycloneDX 1.5 document; the same input gives the same text."""
    stamp = dt.datetime.fromtimestamp(epoch, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    identity = "\n".join([name, version, lock_digest, *(part.purl for part in parts)])
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, identity)}",
        "version": 1,
        "metadata": {
            "timestamp": stamp,
            "component": {"type": "application", "name": name, "version": version, "bom-ref": f"{name}@{version}"},
            "properties": [{"name": "airflow-edge-agent:uv.lock:sha256", "value": lock_digest}],
        },
        "components": [
            {
                "type": "library",
                "bom-ref": part.purl,
                "name": part.name,
                "version": part.version,
                "purl": part.purl,
                "description": part.summary,
                "licenses": [{"license": {"name": part.licence}}],
            }
            for part in parts
        ],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def copy_licences(parts: list[Component], into: Path) -> None:
    """Put each distribution's licence texts below ``into``, in a folder of its name."""
    for part in parts:
        for path in sorted(part.info.rglob("*")):
            name = path.name.lower()
            if path.is_file() and any(fnmatch.fnmatchcase(name, pattern) for pattern in _LICENCE_FILES):
                goal = into / part.name / path.relative_to(part.info).as_posix().replace("/", "-")
                goal.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, goal)


def copyright_file(name: str, home: str, parts: list[Component]) -> str:
    """Write Debian's machine-readable copyright file.

    :param home: the project's address, empty if it has none.
    """
    lines = [
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/",
        f"Upstream-Name: {name}",
        *([f"Source: {home}"] if home else []),
        "Comment:",
        " The package bundles the Python distributions that are listed below, each under its own licence.",
        f" The full texts are in /usr/share/doc/{name}/licences.",
        "",
        "Files: *",
        "Copyright: the airflow-edge-agent maintainers",
        "License: Apache-2.0",
    ]
    for part in parts:
        lines += [
            "",
            f"Files: */site-packages/{part.name}*",
            f"Copyright: the authors of {part.name} {part.version}" + (f", {part.home}" if part.home else ""),
            f"License: {part.name}-licence",
        ]
    lines += [
        "",
        "License: Apache-2.0",
        " On Debian systems the full text is in /usr/share/common-licenses/Apache-2.0.",
    ]
    for part in parts:
        lines += ["", f"License: {part.name}-licence", f" {part.licence}"]
    return "\n".join(lines) + "\n"
