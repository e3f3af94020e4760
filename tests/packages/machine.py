"""A machine with our packages as its administrator sees it, whichever package manager it has."""

from __future__ import annotations

import abc
from dataclasses import dataclass

from harness.site import AirflowSite
from machine.edge import Edge
from machine.guest import Guest

AGENT_PACKAGE = "airflow-edge-agent"
RUNTIME_PACKAGE = "airflow-edge-runtime"
PACKAGES = (AGENT_PACKAGE, RUNTIME_PACKAGE)
RUNTIMES = "/opt/airflow-edge-runtime"
INSTALL_SECONDS = 300.0

_BUNDLES = {"errands": "dags", "late": "late", "demo": "demo"}
# Caches, logs and databases of the system that installing anything changes, and what a running system does by itself.
_NOT_OURS = (
    "/proc/*", "/sys/*", "/run/*", "/tmp/*", "/dev/*", "/var/cache/*", "/var/lib/dpkg/*", "/var/lib/apt/*",
    "/var/lib/rpm/*", "/var/lib/dnf/*", "/var/log/*", "/var/tmp/*", "/var/lib/systemd/*", "/srv/*", "/etc/apt/*",
    "/usr/share/keyrings/*", "/root/*", "/etc/*-", "/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow",
    "/etc/.pwd.lock",
)  # fmt: skip


@dataclass(frozen=True)
class Installed:
    """One run of a package manager: what it or a package's script complained about, and its seconds."""

    complaints: list[str]
    seconds: float


class PackagedMachine(abc.ABC):
    """A machine that knows a repository with two releases."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest

    @abc.abstractmethod
    def add_repository(self) -> None:
        """Do what the repository's README says."""

    @abc.abstractmethod
    def install(self) -> Installed:
        """Install the agent by name, as it is written in the documentation."""

    @abc.abstractmethod
    def install_release(self, number: int) -> Installed:
        """Install release 1 or 2 of both packages, up or down."""

    @abc.abstractmethod
    def upgrade(self) -> Installed:
        """Upgrade the system."""

    @abc.abstractmethod
    def remove(self, *packages: str) -> Installed:
        """Remove packages; their configuration stays."""

    @abc.abstractmethod
    def version(self, package: str = AGENT_PACKAGE) -> str:
        """Return what is installed."""

    @abc.abstractmethod
    def verify(self) -> str:
        """Return what the package manager finds changed in our packages' files; empty if nothing is."""

    def files(self) -> set[str]:
        """Return all files and folders that are neither the system's own business nor the tests'."""
        unwanted = [part for pattern in _NOT_OURS for part in ("!", "-path", pattern)]
        return set(self.guest.run("find", "/", "-xdev", *unwanted, seconds=120).splitlines())

    def runtimes(self) -> list[str]:
        """Return the versions of the runtime that are there."""
        names = self.guest.run("ls", RUNTIMES).split()
        return [name for name in names if name not in ("bin", "current")]

    def current_runtime(self) -> str:
        """Return the one in which new tasks run."""
        return self.guest.run("readlink", f"{RUNTIMES}/current").strip()

    def is_enabled(self) -> str:
        """Return what systemd says about the agent."""
        return self.guest.run("systemctl", "is-enabled", "edge-agent.service", check=False).strip()

    def enrol(self, site: AirflowSite, name: str) -> Edge:
        """Make it an agent of ``site`` with the operator's own command, and start it."""
        edge = Edge(self.guest, site, name=name, token=site.create_join_token(name))
        lines = "".join(f'[bundles.{name}]\npath = "/srv/{folder}"\n' for name, folder in _BUNDLES.items())
        self.guest.write("/etc/airflow-edge-agent/conf.d/50-bundles.toml", f"concurrency = 4\n{lines}")
        self.guest.run("edgectl", "enroll", site.url, "--name", name, stdin=f"{edge.token}\n")
        edge.enrolled = True
        edge.enable()
        return edge
