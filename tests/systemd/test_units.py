"""The unit files, on each release of systemd that Debian offers. Nothing is started."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from airflow_edge_agent.adapters.environment_file import environment_file
from machine.edge import AGENT, RUNNER, MakeMachine
from machine.exposure import OPEN, left_open, table
from machine.image import BOOKWORM, SOURCE, TRIXIE, Images, Release
from machine.nspawn import NspawnMachine

UNITS = (AGENT, RUNNER, "edge-runner.socket", "airflow-edge.slice")
MOST_EXPOSURE = {AGENT: 2.0, RUNNER: 2.5}
SYSTEMD_PAGE = SOURCE / "docs" / "systemd.md"


@pytest.fixture(scope="module", params=[BOOKWORM, TRIXIE], ids=lambda release: release.suite)
def release(request: pytest.FixtureRequest) -> Release:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def machine(release: Release, images: Images, make_machine: MakeMachine) -> Iterator[NspawnMachine]:
    machine = make_machine(images.agent(release, with_runtime=release is BOOKWORM))
    yield machine
    machine.close()


def test_the_machine_has_the_systemd_we_say(machine: NspawnMachine, release: Release) -> None:
    assert machine.run("systemctl", "--version").split()[1] == str(release.systemd)


def test_verify_has_nothing_to_say(machine: NspawnMachine) -> None:
    for unit in UNITS:
        done = machine.result("systemd-analyze", "verify", "--man=no", unit)
        assert (done.returncode, done.stdout + done.stderr) == (0, ""), unit


def test_nothing_is_enabled_or_started_by_being_installed(machine: NspawnMachine) -> None:
    assert machine.run("systemctl", "is-enabled", AGENT, check=False).strip() == "disabled"
    for unit in (AGENT, RUNNER, "edge-runner.socket"):
        assert machine.show(unit, "ActiveState") == "inactive", unit
    assert machine.run("systemctl", "is-system-running", check=False).strip() == "running"


def test_a_preset_of_all_units_leaves_it_off(machine: NspawnMachine) -> None:
    machine.run("systemctl", "preset-all")
    assert machine.run("systemctl", "is-enabled", AGENT, check=False).strip() == "disabled"


def test_newer_directives_are_in_force_only_where_they_are_known(machine: NspawnMachine, release: Release) -> None:
    steps = machine.run("systemctl", "show", "-p", "RestartSteps", AGENT).strip()
    assert steps == ("RestartSteps=6" if release.systemd >= 254 else "")
    assert [text for text in machine.messages("-t", "systemd") if "Unknown" in text] == []


def test_users_and_folders(machine: NspawnMachine) -> None:
    for user in ("edge-agent", "edge-task"):
        assert machine.run("id", "-nG", user).split() == [user]
    assert machine.run("getent", "group", "edge-operator").strip().endswith(":")
    for path, wanted in {
        "/var/lib/edge-runner": "2770 edge-task edge-agent",
        "/etc/airflow-edge-agent": "755 root root",
        "/etc/airflow-edge-agent/conf.d": "755 root root",
    }.items():
        assert machine.run("stat", "-c", "%a %U %G", path).strip() == wanted, path


@pytest.mark.parametrize("unit", [AGENT, RUNNER])
def test_exposure_is_low_and_every_open_directive_has_a_reason(
    machine: NspawnMachine, unit: str, release: Release
) -> None:
    score, directives = left_open(machine, unit)
    print(f"{unit}, systemd {release.systemd}: {score}")
    for name in directives:
        print(f"  {name}: {OPEN[unit].get(name, 'NO REASON')}")
    assert score <= MOST_EXPOSURE[unit]
    assert [name for name in directives if name not in OPEN[unit]] == []


def test_the_page_shows_the_table_of_this_release(machine: NspawnMachine, release: Release) -> None:
    if release is not BOOKWORM:
        pytest.skip("the table is that of Debian 12")
    page = SYSTEMD_PAGE.read_text()
    for unit in (AGENT, RUNNER):
        shown = re.search(f"<!-- exposure {unit} -->\n(.*?)<!-- end -->", page, re.DOTALL)
        assert shown is not None, unit
        assert shown.group(1) == table(machine, unit), f"{SYSTEMD_PAGE.name} is not up to date; run: make docs-systemd"


def test_systemd_reads_the_runners_environment_as_we_write_it(machine: NspawnMachine) -> None:
    wanted = {
        "JSON": '[{"name": "a b", "kwargs": {"path": "/srv/d\\u00fc"}}]',
        "SHELL_LIKE": "$HOME `id` \\$x \\\\ 'single' \"double\" # no comment",
        "LINES": "one\n  two\ttab\n",
        "EMPTY": "",
        "UNICODE": "grüße 世界",
        "SPACES": "  kept  ",
    }
    machine.write("/run/test.env", environment_file(wanted), mode="0600")
    run = ["systemd-run", "--wait", "--pipe", "-q", "-p", "EnvironmentFile=/run/test.env", "-p", "User=edge-task"]
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    found = json.loads(machine.run(*run, "/usr/bin/python3", "-c", code))
    assert {name: found.get(name) for name in wanted} == wanted
