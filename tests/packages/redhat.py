"""A machine whose administrator uses dnf and rpm.

Its files are Debian's, since there is no other distribution here to make it from. What RPM's database knows of them is
one package that provides what RPM's own tools find in the C library and its companions, Python and systemd. Everything
else is real: the database, the transactions, the scriptlets under a booted systemd, dnf, its check of the signed index.
"""

from __future__ import annotations

import time

from packages.machine import AGENT_PACKAGE, INSTALL_SECONDS, PACKAGES, Installed, PackagedMachine

NEEDED = ("rpm", "dnf")
"""Debian's packages that such a machine has beside the usual ones."""

# Debian's rpm says so to everybody who changes something.
_NOISE = ("rpm: RPM should not be used directly ", "rpm: However assuming you know what you are doing")
# Debian's rpm keeps its database in the user's home, lest somebody take it for the system's.
_MACROS = "%_dbpath /var/lib/rpm\n"
_SYSTEM = """\
Name: the-system
Version: 1
Release: 1
Summary: what is on this machine without RPM's knowledge
License: none
BuildArch: noarch
Provides: /bin/sh, systemd, ca-certificates, python(abi) = @PYTHON@
@PROVIDES@
%description
%{summary}
%files
"""
_ADD_SYSTEM = """\
set -e
provides=$(for name in libc.so.6 libgcc_s.so.1 libstdc++.so.6; do
    echo "/lib/x86_64-linux-gnu/$name" | /usr/lib/rpm/elfdeps --provides
    readlink -f "/lib/x86_64-linux-gnu/$name" | /usr/lib/rpm/elfdeps --provides
done | sort -u | sed 's/^/Provides: /')
python=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
sed "s/@PYTHON@/$python/" /root/system.in | awk -v all="$provides" \\
    '{ print $0 == "@PROVIDES@" ? all : $0 }' > /root/system.spec
rpmbuild -bb --quiet --define '_topdir /root/rpmbuild' /root/system.spec
rpm --install /root/rpmbuild/RPMS/noarch/the-system-1-1.noarch.rpm
rm -rf /root/rpmbuild /root/system.*
"""


class RpmMachine(PackagedMachine):
    """A machine with the repository of both releases, and dnf."""

    def add_repository(self) -> None:
        """Do what the repository's README says, after telling RPM what the system has."""
        self.guest.write("/etc/rpm/macros", _MACROS)
        self.guest.write("/root/system.in", _SYSTEM)
        self.guest.run("sh", "-c", _ADD_SYSTEM, seconds=INSTALL_SECONDS)
        script = (
            "set -e; mkdir -p /etc/yum.repos.d; cd /srv/repository; "
            "sed s,BASE,file://$PWD, airflow-edge-agent.repo > /etc/yum.repos.d/airflow-edge-agent.repo; "
            "rpm --import airflow-edge-agent.asc"
        )
        self.guest.run("sh", "-c", script, seconds=INSTALL_SECONDS)

    def dnf(self, *arguments: str) -> Installed:
        """Run dnf without questions; what scripts say is among what it prints."""
        began = time.monotonic()
        done = self.guest.result("dnf", "--assumeyes", *arguments, seconds=INSTALL_SECONDS)
        assert done.returncode == 0, (arguments, done.stdout[-2000:], done.stderr[-2000:])
        ours = [line for line in (done.stdout + done.stderr).splitlines() if _is_complaint(line)]
        return Installed(ours, time.monotonic() - began)

    def rpm(self, *arguments: str) -> Installed:
        """Run rpm."""
        began = time.monotonic()
        done = self.guest.result("rpm", *arguments, seconds=INSTALL_SECONDS)
        assert done.returncode == 0, (arguments, done.stdout[-2000:], done.stderr[-2000:])
        complaints = [line for line in done.stderr.splitlines() if not line.startswith(_NOISE)]
        return Installed(complaints, time.monotonic() - began)

    def version(self, package: str = AGENT_PACKAGE) -> str:
        """Return what is installed."""
        return self.guest.run("rpm", "--query", "--queryformat", "%{VERSION}-%{RELEASE}", package)

    def verify(self) -> str:
        """Return what rpm finds changed."""
        return self.guest.run("rpm", "--verify", *PACKAGES, check=False)

    def install(self) -> Installed:
        """Install the agent by name."""
        return self.dnf("install", AGENT_PACKAGE)

    def install_release(self, number: int) -> Installed:
        """Install release 1 or 2 of both packages, up or down, from the files alone."""
        pattern = f"ls /srv/repository/yum/*-{number}.py*.rpm"
        return self.rpm("--upgrade", "--oldpackage", *self.guest.run("sh", "-c", pattern).split())

    def upgrade(self) -> Installed:
        """Upgrade the system."""
        return self.dnf("upgrade")

    def remove(self, *packages: str) -> Installed:
        """Erase packages; edited configuration gets the suffix .rpmsave."""
        return self.rpm("--erase", *packages)


def _is_complaint(line: str) -> bool:
    words = line.strip().lower()
    said_by_a_script = words.startswith(tuple(f"{package}: " for package in PACKAGES))
    return said_by_a_script or "warning" in words or "error" in words
