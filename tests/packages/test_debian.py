"""What Debian has beyond other systems: policy-rc.d, choices over a removal, purge, dpkg's half-way states."""

from __future__ import annotations

from harness.site import AirflowSite
from machine.edge import AGENT, CREDENTIAL
from packages.debian import DebianMachine
from packages.machine import AGENT_PACKAGE, INSTALL_SECONDS, PACKAGES, RUNTIME_PACKAGE, RUNTIMES


def test_choices_survive_a_removal(debian: DebianMachine) -> None:
    guest = debian.guest
    debian.install_release(1)
    guest.run("sh", "-c", "echo '# mine' >> /etc/airflow-edge-agent/agent.toml")
    for choice in ("enable", "disable", "mask"):
        guest.run("systemctl", choice, AGENT)
        state = debian.is_enabled()
        debian.remove(AGENT_PACKAGE)
        debian.install_release(1)
        assert debian.is_enabled() == state
    assert guest.read("/etc/airflow-edge-agent/agent.toml").endswith("# mine\n")


def test_policy_rc_d_is_obeyed(debian: DebianMachine, site: AirflowSite) -> None:
    guest = debian.guest
    debian.install_release(1)
    edge = debian.enrol(site, "policy")
    pid = edge.pid()
    guest.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", mode="0755")
    debian.install_release(2)
    assert edge.pid() == pid
    guest.run("rm", "/usr/sbin/policy-rc.d")
    debian.install_release(1)
    assert edge.pid() != pid


def test_a_purge_says_so_and_deletes_everything(debian: DebianMachine, site: AirflowSite) -> None:
    guest = debian.guest
    before = debian.files()
    debian.install_release(2)
    edge = debian.enrol(site, "purge")
    held = edge.send("hold")
    held.wait_began()
    held.check_unharmed()
    # As an administrator leaves them.
    edge.drop_in(AGENT, "[Service]\nNice=5\n")
    guest.run("sh", "-c", "echo '# mine' >> /etc/airflow-edge-agent/agent.toml")

    done = debian.apt("purge", *PACKAGES)
    assert done.complaints == [f"{AGENT_PACKAGE}: deleting this agent's identity, state and task logs"]
    assert debian.files() - before == set()
    for pattern in ("*edge*", "airflow*"):
        assert guest.run("systemctl", "list-unit-files", "--no-legend", pattern, check=False) == ""
    assert guest.run("sh", "-c", "find /var/log /run -name '*edge*' ! -path '*/journal/*'") == ""

    # And from the beginning, as if nothing had been.
    assert debian.install_release(1).complaints == []
    assert debian.is_enabled() == "disabled"
    again = debian.enrol(site, "purged")
    errand = again.send("hold")
    errand.wait_began()
    errand.check_unharmed()


def test_a_purge_of_what_was_removed_before(debian: DebianMachine, site: AirflowSite) -> None:
    before = debian.files()
    debian.install_release(2)
    debian.enrol(site, "later")
    debian.remove(*PACKAGES)
    assert debian.guest.run("ls", CREDENTIAL)
    assert debian.apt("purge", *PACKAGES).complaints == [
        f"{AGENT_PACKAGE}: deleting this agent's identity, state and task logs"
    ]
    assert debian.files() - before == set()


def test_a_half_way_installation_recovers(debian: DebianMachine) -> None:
    guest = debian.guest
    guest.run("sh", "-c", "mv /usr/bin/systemd-sysusers /root/ && ln -s /bin/false /usr/bin/systemd-sysusers")
    done = guest.result(
        "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-y", "install", AGENT_PACKAGE,
        seconds=INSTALL_SECONDS,
    )  # fmt: skip
    assert done.returncode != 0
    # As after a power failure in the middle of making the new runtime.
    guest.run("sh", "-c", f"rm -rf {RUNTIMES}/current {RUNTIMES}/*/.version && mkdir -p {RUNTIMES}/.new-half/lib")
    guest.run("mv", "/root/systemd-sysusers", "/usr/bin/systemd-sysusers")
    debian.apt("install", "--reinstall", RUNTIME_PACKAGE)
    guest.run("dpkg", "--configure", "-a")
    assert guest.run("dpkg", "--audit") == ""
    assert guest.run("edge-agent", "version")
    assert debian.runtimes() == [debian.current_runtime()]
    assert guest.run("ls", "-A", RUNTIMES).split() == [debian.current_runtime(), "bin", "current"]
