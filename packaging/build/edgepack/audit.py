"""Whether what is shipped has known vulnerabilities, and bills of what that is: ``make audit``.

A vulnerability that is known is a failure. Where nobody can be asked, that is said, and is none: it proves nothing.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import Requirement

from edgepack import agent, sbom
from edgepack.context import source_date
from edgepack.environment import canonical
from edgepack.faults import BuildError
from edgepack.lock import Lock

SECONDS = 300
SERVICES = ("pypi", "osv")
"""Who is asked, one after the other until one knows."""


@dataclass
class Found:
    """What one of them says."""

    asked: int = 0
    unknown: list[str] = field(default_factory=list)
    """Distributions of which it knows nothing, with its reason."""
    vulnerable: list[str] = field(default_factory=list)
    """One line each: distribution, version, name of the vulnerability, versions in which it is mended."""


def read(report: str) -> Found:
    """Read what pip-audit has written.

    :raises ValueError: it is no report.
    """
    found = Found()
    for part in json.loads(report)["dependencies"]:
        found.asked += 1
        if "skip_reason" in part:
            found.unknown.append(f"{part['name']}: {part['skip_reason']}")
        for fault in part.get("vulns", []):
            mended = ", ".join(fault["fix_versions"]) or "nowhere yet"
            names = ", ".join([fault["id"], *fault.get("aliases", [])])
            found.vulnerable.append(f"{part['name']} {part['version']}: {names}; mended in {mended}")
    return found


def ask(requirements: Path, service: str, program: Sequence[str] = (sys.executable, "-m", "pip_audit")) -> Found | str:
    """Ask a service about pinned requirements; a text says why it could not be asked."""
    command = [*program, "--requirement", str(requirements), "--no-deps", "--disable-pip", "--format", "json"]
    try:
        done = subprocess.run(
            [*command, "--vulnerability-service", service, "--progress-spinner", "off", "--timeout", "10"],
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no answer within {SECONDS} s"
    try:
        found = read(done.stdout)
    except (ValueError, KeyError, TypeError):
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300]
    if found.asked and len(found.unknown) == found.asked:
        return f"it knows none of the {found.asked} distributions: {found.unknown[0]}"
    return found


def audit(what: str, requirements: Path, program: Sequence[str] = (sys.executable, "-m", "pip_audit")) -> bool:
    """Ask until somebody answers, and say what came of it; ``False``: there is a vulnerability."""
    for service in SERVICES:
        found = ask(requirements, service, program)
        if isinstance(found, str):
            print(f"{what}: {service} cannot be asked: {found}")
            continue
        print(f"{what}: {found.asked - len(found.unknown)} of {found.asked} distributions are known to {service}")
        for line in found.vulnerable:
            print(f"  VULNERABLE  {line}")
        return not found.vulnerable
    print(f"{what}: NOT CHECKED, nobody could be asked about known vulnerabilities")
    return True


def everything(root: Path, site: Path, into: Path) -> bool:
    """Audit agent, server and task runtime as they are locked, and write their bills; ``False``: a vulnerability.

    :param site: an environment in which all of it is installed.
    :raises BuildError: something of it is not installed there.
    """
    lock = Lock(root)
    into.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256((root / "uv.lock").read_bytes()).hexdigest()
    pins = {name: lock.of_package(name) for name in ("airflow-edge-agent", "airflow-edge-server")}
    pins["airflow-edge-runtime"] = lock.of_group("runtime")
    installed = sbom.components(site)
    good = True
    for name, found in pins.items():
        needed = [Requirement(line) for line in found.constraints]
        needed = [item for item in needed if item.marker is None or item.marker.evaluate()]
        parts = [part for part in installed if part.name in {canonical(item.name) for item in needed}]
        if missing := {canonical(item.name) for item in needed} - {part.name for part in parts}:
            raise BuildError(f"{site}: {', '.join(sorted(missing))} is not installed there; run: make setup")
        requirements = into / f"{name}.txt"
        requirements.write_text("".join(f"{item.name}{item.specifier}\n" for item in needed))
        bill = into / f"{name}.cdx.json"
        bill.write_text(
            sbom.bill_of_materials(name, agent.version(root), parts, epoch=source_date(root), lock_digest=digest)
        )
        good = audit(name, requirements) and good
        print(f"  {bill}: {len(parts)} distributions")
    return good
