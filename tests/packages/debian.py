"""A Debian machine as its administrator sees it: apt, dpkg, files."""

from __future__ import annotations

import time

from packages.machine import AGENT_PACKAGE, INSTALL_SECONDS, PACKAGES, Installed, PackagedMachine

# Says nothing about us.
_NOISE = (
    "debconf: delaying package configuration",
    "dpkg: warning: downgrading ",
    # About folders of the system that others have files in, too.
    "dpkg: warning: while removing ",
)


class DebianMachine(PackagedMachine):
    """A machine with the repository of both releases, and apt."""

    def add_repository(self) -> None:
        """Do what the repository's README says."""
        script = (
            "set -e; rm -f /etc/apt/sources.list; cd /srv/repository; "
            "install -D -m 644 airflow-edge-agent.gpg /usr/share/keyrings/airflow-edge-agent.gpg; "
            "sed s,BASE,file:$PWD, airflow-edge-agent.sources > /etc/apt/sources.list.d/airflow-edge-agent.sources; "
            "apt-get -qq update"
        )
        self.guest.run("sh", "-c", script, seconds=INSTALL_SECONDS)

    def apt(self, *arguments: str) -> Installed:
        """Run apt-get without questions."""
        began = time.monotonic()
        done = self.guest.result(
            "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-y", "--allow-downgrades",
            # Or all that dpkg and the scripts say is on standard output, mixed with dpkg's progress.
            "-oDpkg::Use-Pty=0", *arguments,
            seconds=INSTALL_SECONDS,
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

    def verify(self) -> str:
        """Return what dpkg finds changed."""
        return self.guest.run("dpkg", "--verify", *PACKAGES)

    def install(self) -> Installed:
        """Install the agent by name."""
        return self.apt("install", AGENT_PACKAGE)

    def install_release(self, number: int) -> Installed:
        """Install release 1 or 2 of both packages, up or down."""
        wanted = []
        for package in PACKAGES:
            version = next(version for version in self.versions(package) if f"-{number}.py" in version)
            wanted.append(f"{package}={version}")
        return self.apt("install", *wanted)

    def upgrade(self) -> Installed:
        """Upgrade the system."""
        return self.apt("upgrade")

    def remove(self, *packages: str) -> Installed:
        """Remove packages; their configuration stays."""
        return self.apt("remove", *packages)
