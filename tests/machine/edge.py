"""An edge agent on a machine, and errands that a real Airflow sends it on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from harness.agent import to_toml
from harness.rest import TaskInstance
from harness.site import AirflowSite
from harness.waiting import wait_until
from machine.guest import Guest, GuestError
from machine.nspawn import NspawnMachine

AGENT = "edge-agent.service"
RUNNER = "edge-runner.service"
CONFIG = "/etc/airflow-edge-agent/agent.toml"
CREDENTIAL = "/var/lib/airflow-edge-agent/credential"
JOIN_TOKEN = "/root/join-token"
DAGS = "/srv/dags"
ERRANDS = "/srv/errands"
CONTROL = "/run/airflow-edge-agent/control.sock"
RUNNER_SOCKET = "/run/edge-runner/runner.sock"
RUNNER_DIR = "/var/lib/edge-runner"


MakeEdge: TypeAlias = "Callable[..., Edge]"
MakeMachine: TypeAlias = Callable[..., NspawnMachine]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process uses: CPU seconds since its start, bytes of memory."""

    cpu_seconds: float
    pss_bytes: int
    rss_bytes: int
    own_bytes: int
    """What is in no file: anonymous memory."""


class Edge:
    """The agent of one machine.

    :param server_url: the site, as the machine reaches it.
    :param patience: what to multiply all waiting with; more than 1 where the machine is slow.
    """

    def __init__(
        self,
        guest: Guest,
        site: AirflowSite,
        *,
        name: str,
        token: str,
        server_url: str | None = None,
        patience: float = 1,
    ) -> None:
        self.guest = guest
        self.site = site
        self.name = name
        self.patience = patience
        self.token = token
        self.enrolled = False
        self.settings: dict[str, Any] = {
            "server_url": server_url or site.url,
            "name": name,
            "concurrency": 4,
            "bundles": {"errands": {"path": DAGS}},
        }
        if not (server_url or site.url).startswith("http://127."):
            self.settings["allow_plain_http"] = True
        self._count = 0

    # Set-up, as an operator does it

    def configure(self, changes: Mapping[str, Any] | None = None) -> None:
        """Write the configuration, and enroll the machine if it is not yet; a running agent is not told."""
        self.settings |= changes or {}
        self.guest.write(CONFIG, to_toml(self.settings))
        if not self.enrolled:
            self.guest.write(JOIN_TOKEN, self.token + "\n", mode="0600")
            self.guest.run("edgectl", "enroll", "--token-file", JOIN_TOKEN, seconds=60 * self.patience)
            self.enrolled = True

    def drop_in(self, unit: str, lines: str, *, name: str = "test") -> None:
        """Change a unit by a drop-in of the administrator's."""
        self.guest.write(f"/etc/systemd/system/{unit}.d/{name}.conf", lines)
        self.guest.run("systemctl", "daemon-reload")

    def remove_drop_in(self, unit: str, *, name: str = "test") -> None:
        """Take back :meth:`drop_in`."""
        self.guest.run("rm", "-f", f"/etc/systemd/system/{unit}.d/{name}.conf")
        self.guest.run("systemctl", "daemon-reload")

    def enable(self) -> None:
        """Enable and start the agent, and wait until the server has welcomed it."""
        self.guest.run("systemctl", "enable", "--now", AGENT, seconds=60 * self.patience)
        self.wait_connected()

    def wait_connected(self, *, invocation: str | None = None, seconds: float = 60) -> None:
        """Wait until the present daemon, or the one of ``invocation``, has been welcomed by the server."""
        now = invocation or self.invocation()
        self.guest.wait_for_message("connected", f"_SYSTEMD_INVOCATION_ID={now}", seconds=seconds * self.patience)

    # Watching

    def invocation(self) -> str:
        """Return systemd's id of the present run of the daemon."""
        return self.guest.show(AGENT, "InvocationID")

    def pid(self) -> int:
        """Return the daemon's process id, inside."""
        return self.guest.main_pid(AGENT)

    def usage(self, pid: int) -> Usage:
        """Measure one process, with what its ended children have used."""
        stat = self.guest.read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        ticks = int(self.guest.run("getconf", "CLK_TCK"))
        rollup = self.guest.read(f"/proc/{pid}/smaps_rollup").splitlines()[1:]
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in rollup}
        return Usage(sum(map(int, stat[11:15])) / ticks, sizes["Pss"], sizes["Rss"], sizes["Anonymous"])

    def seconds_to_ready(self) -> float:
        """Return how long the daemon took from exec to READY, by systemd's own clock."""
        began = int(self.guest.show(AGENT, "ExecMainStartTimestampMonotonic"))
        ready = int(self.guest.show(AGENT, "ActiveEnterTimestampMonotonic"))
        return (ready - began) / 1e6

    def edgectl(self, *arguments: str, user: str | None = None) -> Any:
        """Run edgectl with ``--json`` and return what it says.

        :raises GuestError: it failed.
        """
        return json.loads(self.guest.run("edgectl", *arguments, "--json", user=user))

    # Work

    def send(self, dag_id: str, **conf: Any) -> Errand:
        """Have Airflow run one of the Dags here; its only task has the same name."""
        self._count += 1
        name = f"{self.name}-{dag_id}-{self._count}"
        # The task's user makes files there.
        self.guest.run("sh", "-c", f"mkdir -p {ERRANDS}/{name} && chmod 1777 {ERRANDS}/{name}")
        run_id = self.site.api.trigger_dag(dag_id, run_id=name, conf={"name": name, **conf})
        return Errand(self, dag_id, run_id)


class Errand:
    """One run of a Dag with one task."""

    def __init__(self, edge: Edge, dag_id: str, run_id: str) -> None:
        self.edge = edge
        self.dag_id = dag_id
        self.run_id = run_id
        self._folder = f"{ERRANDS}/{run_id}"

    def notes(self) -> list[list[str]]:
        """Return what the task noted down: what, try, pid."""
        try:
            return [line.split() for line in self.edge.guest.read(f"{self._folder}/notes").splitlines()]
        except GuestError:
            return []

    def wait_began(self, seconds: float = 90) -> int:
        """Wait until the task runs, and return its process id inside."""
        noted = wait_until(
            self.notes,
            seconds=seconds * self.edge.patience,
            what=f"{self.run_id} to begin",
            poll_seconds=0.25,
            seen=lambda: self.edge.guest.messages("-u", AGENT, "-u", RUNNER)[-10:],
        )
        return int(noted[0][2])

    def lines(self) -> list[str]:
        """Return the lines that the task has written by now."""
        return self.edge.guest.read(f"{self._folder}/lines").splitlines()

    def wait_for_more_lines(self, seconds: float = 30) -> None:
        """Wait until the task has written more than it has by now: it is alive."""
        before = len(self.lines())
        wait_until(
            lambda: len(self.lines()) > before + 1,
            seconds=seconds * self.edge.patience,
            what=f"{self.run_id} to write more lines than {before}",
        )

    def go(self) -> None:
        """Let the task end."""
        self.edge.guest.run("touch", f"{self._folder}/go")

    def wait(self, seconds: float = 120) -> str:
        """Wait until the run has ended, and return its state."""
        return self.edge.site.api.wait_for_run(self.dag_id, self.run_id, seconds=seconds * self.edge.patience)

    def task(self) -> TaskInstance:
        """Return the task as Airflow sees it."""
        return self.edge.site.api.task_instance(self.dag_id, self.run_id, self.dag_id)

    def returned(self) -> Any:
        """Return what the task has returned."""
        return self.edge.site.api.xcom(self.dag_id, self.run_id, self.dag_id)

    def log(self) -> list[str]:
        """Return the log of the task as Airflow shows it, every line of it."""
        return [line.event for line in self.edge.site.api.log(self.task())]

    def check_unharmed(self) -> None:
        """Let the task end, and check that it ran once, to its end, and that no line of its log is lost."""
        self.go()
        state = self.wait()
        assert state == "success", (state, self.log()[-10:])
        assert [note[0] for note in self.notes()] == ["began", "ended"], self.notes()
        wanted = self.lines()
        shown = wait_until(
            lambda: [line for line in self.log() if line.startswith("line ")][: len(wanted)],
            seconds=30,
            what="the log",
        )
        if shown != wanted:
            wait_until(
                lambda: [line for line in self.log() if line.startswith("line ")] == wanted,
                seconds=30 * self.edge.patience,
                what=f"all {len(wanted)} lines in Airflow's log",
                seen=lambda: len([line for line in self.log() if line.startswith("line ")]),
            )
