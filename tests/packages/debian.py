"""A Debian machine as its administrator sees it: apt, dpkg, files."""

from __future__ import annotations

import time
from dataclasses import dataclass

from harness.site import AirflowSite
from machine.edge import Edge
from machine.guest import Guest

AGENT_PACKAGE = "airflow-edge-agent"
RUNTIME_PACKAGE = "airflow-edge-runtime"
RUNTIMES = "/opt/airflow-edge-runtime"
APT_SECONDS = 300.0

# Says nothing about us.
_NOISE = (
    "debconf: delaying package configuration",
    "dpkg: warning: downgrading ",
    # About folders of the system that others have files in, too.
    "dpkg: warning: while removing ",
)
# Caches, logs and databases of the system that installing anything changes, and what a running system does by itself.
_NOT_OURS = (
    "/proc/*", "/sys/*", "/run/*", "/tmp/*", "/dev/*", "/var/cache/*", "/var/lib/dpkg/*", "/var/lib/apt/*",
    "/var/log/*",
    "/var/tmp/*", "/var/lib/systemd/*", "/srv/*", "/etc/apt/*", "/usr/share/keyrings/*", "/root/*", "/etc/*-",
    "/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow", "/etc/.pwd.lock",
)  # fmt: skip


@dataclass(frozen=True)
class Installed:
    """One run of apt: what it said on standard error, and its seconds."""

    complaints: list[str]
    seconds: float


class DebianMachine:
    """A machine with the repository of both releases."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest

    def add_repository(self) -> None:
        """Do what the repository's README says."""
        script = (
            "set -e; rm -f /etc/apt/sources.list; cd /srv/repository; "
            "install -D -m 644 airflow-edge-agent.gpg /usr/share/keyrings/airflow-edge-agent.gpg; "
            "sed s,BASE,file:$PWD, airflow-edge-agent.sources > /etc/apt/sources.list.d/airflow-edge-agent.sources; "
            "apt-get -qq update"
        )
        self.guest.run("sh", "-c", script, seconds=APT_SECONDS)

    def apt(self, *arguments: str) -> Installed:
        """Run apt-get without questions."""
        began = time.monotonic()
        done = self.guest.result(
            "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-y", "--allow-downgrades",
            # Or all that dpkg and the scripts say is on standard output, mixed with dpkg's progress.
            "-oDpkg::Use-Pty=0", *arguments,
            seconds=APT_SECONDS,
        )  # fmt: skip
        assert done.returncode == 0, (arguments, done.stdout[-2000:], done.stderr[-2000:])
        complaints = [line for line in done.stderr.splitlines() if not line.startswith(_NOISE)]
        return Installed(complaints, time.monotonic() - began)

    def versions(self, package: str = AGENT_PACKAGE) -> list[str]:
        """Return the versions that the repository has, newest first."""
        lines = self.guest.run("apt-cache", "madison", package).splitlines()
        return [line.split("|")[1].strip() for line in lines]

    def version(self, package: str = AGENT_PACKAGE) -> str:
        """Return what is installed."""
        return self.guest.run("dpkg-query", "-W", "-f", "${Version}", package)

    def install_release(self, number: int) -> Installed:
        """Install release 1 or 2 of both packages, up or down."""
        wanted = []
        for package in (AGENT_PACKAGE, RUNTIME_PACKAGE):
            version = next(version for version in self.versions(package) if f"-{number}.py" in version)
            wanted.append(f"{package}={version}")
        return self.apt("install", *wanted)

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
        edge = Edge(self.guest, site, name=name, token=site.create_agent_token(name))
        lines = "".join(f'[bundles.{name}]\npath = "/srv/{folder}"\n' for name, folder in _BUNDLES.items())
        self.guest.write("/etc/airflow-edge-agent/conf.d/50-bundles.toml", f"concurrency = 4\n{lines}")
        self.guest.write("/root/token", f"{edge.token}\n", mode="0600")
        self.guest.run("edgectl", "enroll", "--server-url", site.url, "--name", name, "--token-file", "/root/token")
        edge.enable()
        return edge


_BUNDLES = {"errands": "dags", "late": "late", "demo": "demo"}
