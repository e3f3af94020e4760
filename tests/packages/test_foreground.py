"""What the container's process 1 does, without systemd's help: in the root of a machine, beside its systemd."""

from __future__ import annotations

import shlex

from harness.site import AirflowSite
from harness.waiting import wait_until
from machine.edge import DAGS
from machine.image import SOURCE
from packages.debian import AGENT_PACKAGE, RUNTIMES, DebianMachine

ENTRYPOINT = "/usr/local/bin/edge-agent-foreground"


def test_the_entry_point_runs_an_agent_in_the_foreground(debian: DebianMachine, site: AirflowSite) -> None:
    guest = debian.guest
    debian.apt("install", AGENT_PACKAGE)
    guest.write(ENTRYPOINT, (SOURCE / "packaging/compose/entrypoint.sh").read_text(), mode="0755")
    guest.write("/root/token", site.create_agent_token("foreground") + "\n", mode="0600")
    variables = {
        "EDGE_AGENT_SERVER_URL": site.url,
        "EDGE_AGENT_NAME": "foreground",
        "EDGE_AGENT_TOKEN_FILE": "/root/token",
        "EDGE_AGENT_BUNDLES": f'{{"errands": {{"path": "{DAGS}"}}, "late": {{"path": "/srv/late"}}}}',
    }
    given = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    guest.run("sh", "-c", f"{given} setsid {ENTRYPOINT} > /root/agent.log 2>&1 & echo $! > /root/pid")
    pid = guest.read("/root/pid").strip()

    run_id = site.api.trigger_dag("late", run_id="foreground", conf={"name": "foreground"})
    guest.run("sh", "-c", "mkdir -m 1777 /srv/errands/foreground && touch /srv/errands/foreground/go")
    state = site.api.wait_for_run("late", run_id, seconds=120)
    assert state == "success", guest.read("/root/agent.log")[-2000:]
    assert site.api.xcom("late", run_id, "late")["prefix"] == f"{RUNTIMES}/{debian.current_runtime()}"
    # One process that was exec'ed, as another user, and systemd has no part in it.
    assert guest.run("ps", "-o", "user:20=,args=", "-p", pid).split()[0] == "edge-agent"
    assert debian.is_enabled() == "disabled"

    guest.run("kill", "-TERM", pid)
    wait_until(
        lambda: guest.result("kill", "-0", pid).returncode != 0,
        seconds=60,
        what="the agent to end",
        seen=lambda: guest.read("/root/agent.log")[-1000:],
    )
