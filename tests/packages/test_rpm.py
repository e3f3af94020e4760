"""What RPM has beyond other systems: presets, .rpmsave, no purge, scriptlets that may fail."""

from __future__ import annotations

from harness.site import AirflowSite
from machine.edge import AGENT, CREDENTIAL
from packages.machine import AGENT_PACKAGE, PACKAGES, RUNTIMES
from packages.redhat import RpmMachine

# As docs/packages.md says.
PURGE = (
    "rm -rf /etc/airflow-edge-agent /etc/airflow-edge-runtime /etc/default/edge-agent.rpmsave "
    "/var/lib/airflow-edge-agent /var/lib/airflow-edge-runtime /var/lib/edge-runner /var/log/airflow-edge-agent"
)


def test_the_preset_decides_at_the_first_installation_only(redhat: RpmMachine) -> None:
    guest = redhat.guest
    guest.write("/etc/systemd/system-preset/10-site.preset", "enable edge-agent.service\n")
    assert redhat.install_release(1).complaints == []
    assert (redhat.is_enabled(), guest.show(AGENT, "ActiveState")) == ("enabled", "inactive")
    guest.run("systemctl", "disable", AGENT)
    assert redhat.install_release(2).complaints == []
    assert redhat.is_enabled() == "disabled"


def test_an_index_that_is_not_signed_with_our_key_is_refused(redhat: RpmMachine) -> None:
    guest = redhat.guest
    guest.run("sed", "-i", "s/<revision>/<revision>1/", "/srv/repository/yum/repodata/repomd.xml")
    done = guest.result("dnf", "--assumeyes", "install", AGENT_PACKAGE)
    assert done.returncode != 0
    assert "signature" in (done.stdout + done.stderr).lower()
    assert guest.result("rpm", "--query", AGENT_PACKAGE).returncode != 0


def test_erased_and_deleted_as_documented_nothing_is_left(redhat: RpmMachine, site: AirflowSite) -> None:
    guest = redhat.guest
    before = redhat.files()
    redhat.install_release(2)
    edge = redhat.enrol(site, "erase")
    errand = edge.send("hold")
    errand.wait_began()
    errand.check_unharmed()
    guest.run("sh", "-c", "echo '# mine' | tee -a /etc/airflow-edge-agent/agent.toml >> /etc/default/edge-agent")

    saved = {
        f"warning: {path} saved as {path}.rpmsave"
        for path in ("/etc/airflow-edge-agent/agent.toml", "/etc/default/edge-agent")
    }
    assert set(redhat.remove(*PACKAGES).complaints) == saved
    assert guest.read(CREDENTIAL).startswith("eac_")
    assert guest.read("/etc/airflow-edge-agent/agent.toml.rpmsave").endswith("# mine\n")
    assert guest.run("systemctl", "list-unit-files", "--no-legend", "*edge*", check=False) == ""
    guest.run("sh", "-c", PURGE)
    assert redhat.files() - before == set()


def test_a_half_way_installation_recovers(redhat: RpmMachine) -> None:
    guest = redhat.guest
    guest.run("sh", "-c", "mv /usr/bin/systemd-sysusers /root/ && ln -s /bin/false /usr/bin/systemd-sysusers")
    assert any("scriptlet failed" in line for line in redhat.install_release(1).complaints)
    # As after a power failure in the middle of making the new runtime.
    guest.run("sh", "-c", f"rm -rf {RUNTIMES}/current {RUNTIMES}/*/.version && mkdir -p {RUNTIMES}/.new-half/lib")
    guest.run("mv", "/root/systemd-sysusers", "/usr/bin/systemd-sysusers")
    redhat.dnf("reinstall", *PACKAGES)
    assert guest.run("getent", "passwd", "edge-agent", "edge-task")
    assert redhat.verify() == ""
    assert redhat.runtimes() == [redhat.current_runtime()]
    assert guest.run("ls", "-A", RUNTIMES).split() == [redhat.current_runtime(), "bin", "current"]
