"""The relay against the direct way: two agents of one Airflow, which differ in nothing else."""

from __future__ import annotations

import ssl
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import trustme

from bench.figure import MEBIBYTE, RUN_SECONDS, BenchError, Figure
from bench.slow_link import SlowLink
from harness.agent import AgentProcess
from harness.processes import Keeper
from harness.rest import TaskInstance
from harness.site import AirflowSite
from harness.waiting import wait_until

WAYS = ("relay", "direct")
LABEL = "relay against direct"
ROUND_TRIP_SECONDS = 0.1
MANY = 50
SETTINGS = {"AIRFLOW__CORE__PARALLELISM": "200", "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "100"}
"""Of Airflow: as many tasks at once as are wanted here."""

_WARM_UP_CALLS = 20


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are."""

    root: Path
    environment: Path
    runtime: Path
    dags: Path


class Ways:
    """Measures both ways at one Airflow.

    :param rounds: how often each measurement is made for each way, in turns.
    """

    def __init__(
        self, site: AirflowSite, keeper: Keeper, places: Places, rounds: int, progress: Callable[[str], None]
    ) -> None:
        self._site = site
        self._keeper = keeper
        self._places = places
        self._rounds = rounds
        self._progress = progress

    def run(self) -> list[Figure]:
        """Measure everything.

        :raises BenchError: when a run fails.
        """
        self._site.api.request("POST", "/api/v2/variables", json={"key": "bench", "value": "something"})
        with ExitStack() as stack:
            agents = {way: stack.enter_context(self._agent(way)) for way in WAYS}
            for agent in agents.values():
                agent.start()
            self._connected(agents)
            for way in WAYS:
                self._site.api.wait_for_dag(f"bench_many_{way}")
                self._finish(f"bench_trivial_{way}")
            return [*self._calls(), *self._memory(agents), *self._link(agents)]

    def _agent(self, way: str) -> AgentProcess:
        return AgentProcess(
            self._places.root / way,
            keeper=self._keeper,
            environment=self._places.environment,
            runtime=self._places.runtime,
            server_url=self._site.url,
            token=self._site.create_join_token(f"bench-{way}"),
            name=f"bench-{way}",
            queues=[way],
            concurrency=MANY,
            bundles={"bench": self._places.dags},
            settings={"execution_api": way},
        )

    def _connected(self, agents: Mapping[str, AgentProcess], after: Mapping[str, int] | None = None) -> None:
        for way, agent in agents.items():
            agent.wait_for_log("connected", seconds=60, after=(after or {}).get(way, 0))

    def _finish(self, dag_id: str) -> tuple[str, TaskInstance]:
        api = self._site.api
        run_id = api.trigger_dag(dag_id)
        state = api.wait_for_run(dag_id, run_id, seconds=RUN_SECONDS)
        if state != "success":
            raise BenchError(f"run {run_id} of {dag_id} ended as {state}, see {self._site.logs}")
        return run_id, api.task_instances(dag_id, run_id)[0]

    def _calls(self) -> list[Figure]:
        self._progress("calls of a task to the Execution API")
        taken: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(self._rounds):
            for way in WAYS:
                run_id, _ = self._finish(f"bench_calls_{way}")
                times = self._site.api.xcom(f"bench_calls_{way}", run_id, "calls")
                taken[way].append(statistics.median(times[_WARM_UP_CALLS:]))
        relay, direct = (statistics.median(taken[way]) for way in WAYS)
        return [
            Figure("call_relay_ms", "a call of a task, relayed, median (ms)", relay),
            Figure("call_direct_ms", "  directly", direct),
            Figure("call_overhead_ms", "  the relay's share", relay - direct, 3),
        ]

    def _memory(self, agents: Mapping[str, AgentProcess]) -> list[Figure]:
        self._progress(f"the daemons' memory with {MANY} running tasks")
        before = {way: agents[way].usage().daemon_pss_bytes for way in WAYS}
        grown: dict[str, float] = {}
        api = self._site.api
        for way in WAYS:
            with tempfile.TemporaryDirectory(prefix="edge-bench-") as folder:
                dag_id = f"bench_many_{way}"
                run_id = api.trigger_dag(dag_id, conf={"dir": folder})
                wait_until(
                    lambda dag_id=dag_id, run_id=run_id: (  # type: ignore[misc]
                        [ti.state for ti in api.task_instances(dag_id, run_id)] == ["running"] * MANY
                    ),
                    seconds=RUN_SECONDS,
                    what=f"{MANY} tasks to run",
                    poll_seconds=1,
                )
                # The most that is seen while each of them sends several heartbeats.
                looks = [self._look(agents[way]) for _ in range(15)]
                grown[way] = (max(looks) - before[way]) / MEBIBYTE
                (Path(folder) / "go").touch()
                if api.wait_for_run(dag_id, run_id, seconds=RUN_SECONDS) != "success":
                    raise BenchError(f"run {run_id} of {dag_id} failed, see {self._site.logs}")
        return [
            Figure("many_relay_mib", f"the daemon grows with {MANY} tasks, relayed (MiB)", grown["relay"], 10, 1),
            Figure("many_direct_mib", "  directly", grown["direct"], digits=1),
        ]

    @staticmethod
    def _look(agent: AgentProcess) -> int:
        time.sleep(1)
        return agent.usage().daemon_pss_bytes

    def _link(self, agents: Mapping[str, AgentProcess]) -> list[Figure]:
        self._progress(f"trivial tasks over a link with {ROUND_TRIP_SECONDS * 1_000:g} ms of round trip, and TLS")
        authority = trustme.CA()
        certificates = self._places.root / "authority.pem"
        authority.cert_pem.write_to_path(str(certificates))
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(tls)
        walls: dict[str, list[float]] = {way: [] for way in WAYS}
        with SlowLink(self._site.port, ROUND_TRIP_SECONDS, tls) as link:
            for agent in agents.values():
                agent.stop(60)
            after = {way: len(agent.log_text()) for way, agent in agents.items()}
            for agent in agents.values():
                # A task that speaks for itself is told by Airflow's own setting whom to trust.
                trust = {"env": dict(agent.settings["runner"]["env"]) | {"AIRFLOW__API__SSL_CERT": str(certificates)}}
                agent.configure({"server_url": link.url, "ca_file": str(certificates), "runner": trust})
                agent.start()
            self._connected(agents, after)
            for way in WAYS:
                self._finish(f"bench_trivial_{way}")
            for _ in range(4 * self._rounds):
                for way in WAYS:
                    _, ti = self._finish(f"bench_trivial_{way}")
                    assert ti.seconds is not None
                    walls[way].append(ti.seconds)
            for agent in agents.values():
                agent.stop(60)
        relay, direct = (statistics.median(walls[way]) for way in WAYS)
        return [
            Figure("slow_link_relay_seconds", "wall per trivial task, round trip 100 ms, TLS, relayed (s)", relay),
            Figure("slow_link_direct_seconds", "  directly", direct),
            Figure("slow_link_ratio", "  relayed / directly", relay / direct, 0.5),
        ]
