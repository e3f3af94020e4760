"""What is measured: our agent, and for comparison the worker of Airflow's edge3 provider."""

from __future__ import annotations

import json
import socket
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import psutil

from bench.figure import BenchError
from harness.agent import AgentProcess
from harness.processes import Keeper, Managed, descendants
from harness.site import EDGE_EXECUTOR, AirflowSite
from harness.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")

CONCURRENCY = 8
RUNNER_IDLE_SECONDS = 15
"""Short, so that the bench need not wait long for the runner to leave."""


class Arm(Protocol):
    """One way to run tasks far from Airflow."""

    label: str
    request_path: str
    """How the path of its requests to the api-server begins; the Execution API is not meant."""
    executor: str
    settings: dict[str, str]

    log_watch: Callable[[], psutil.Process] | None
    """Finds the process whose memory is watched while a task writes much log; ``None``: that is not measured."""

    warm_up: Callable[[], float] | None
    """Loads once more what runs tasks; returns how long that took, in seconds. ``None``: nothing is loaded ahead."""

    def start(self, site: AirflowSite) -> None:
        """Start what runs the tasks."""

    def stop(self) -> None:
        """Stop it."""

    def cpu_seconds(self) -> tuple[float, float]:
        """CPU time used so far by what is always there, and by all else, what has ended included."""

    def idle_pss_bytes(self) -> int:
        """Memory of what is there although nothing runs."""

    def resting(self) -> bool:
        """Whether nothing is left of the tasks that have ended, nor of what was started only for them."""

    def job_pss_bytes(self) -> int:
        """Memory of the running tasks' own processes, supervisors included."""

    def total_pss_bytes(self) -> int:
        """Memory of everything on the edge side."""


class AgentArm:
    """Our agent."""

    label = "airflow-edge-agent"
    request_path = "/edge-agents/"
    executor = EDGE_EXECUTOR

    def __init__(
        self, root: Path, keeper: Keeper, *, environment: Path, runtime: Path, dags: Path, relay: bool = False
    ) -> None:
        """Take note of it all.

        :param relay: let the agent speak to the Execution API for its tasks.
        """
        if relay:
            self.label += ", relay"
        self._way = "relay" if relay else "direct"
        self.settings: dict[str, str] = {}
        self._root = root
        self._keeper = keeper
        self._environment = environment
        self._runtime = runtime
        self._dags = dags
        self._agent: AgentProcess | None = None
        self.log_watch: Callable[[], psutil.Process] | None = self._daemon
        self.warm_up: Callable[[], float] | None = self._warm_up

    def _daemon(self) -> psutil.Process:
        assert self.agent.process is not None
        return psutil.Process(self.agent.process.pid)

    @property
    def agent(self) -> AgentProcess:
        """The agent, once started."""
        assert self._agent is not None
        return self._agent

    def start(self, site: AirflowSite) -> None:
        """Start the agent."""
        self._agent = AgentProcess(
            self._root,
            keeper=self._keeper,
            environment=self._environment,
            runtime=self._runtime,
            server_url=site.url,
            token=site.create_join_token("bench"),
            name="bench",
            concurrency=CONCURRENCY,
            bundles={"bench": self._dags},
            settings={"runner": {"idle_seconds": RUNNER_IDLE_SECONDS}, "execution_api": self._way},
        )
        self._agent.start()

    def stop(self) -> None:
        """Stop the agent and its runner."""
        if self._agent is not None:
            self._agent.close()

    def cpu_seconds(self) -> tuple[float, float]:
        """CPU time of the daemon, and of runner, supervisors and tasks."""
        return self.agent.cpu_seconds()

    def idle_pss_bytes(self) -> int:
        """Memory of the daemon."""
        return self.agent.usage().daemon_pss_bytes

    def resting(self) -> bool:
        """Whether the runner has left."""
        return self.agent.runner() is None

    def job_pss_bytes(self) -> int:
        """Memory of the tasks; they are supervised by threads of the runner."""
        return self.agent.usage().jobs_pss_bytes

    def total_pss_bytes(self) -> int:
        """Memory of daemon, runner and tasks."""
        usage = self.agent.usage()
        return usage.daemon_pss_bytes + usage.runner_pss_bytes + usage.jobs_pss_bytes

    def _warm_up(self) -> float:
        with tempfile.TemporaryDirectory(prefix="edge-bench-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            began = time.monotonic()
            runner = self._keeper.spawn(
                "runner",
                [
                    *(self._runtime / "bin" / "python", "-P", self._runner_program(), "--idle-seconds", "0"),
                    *("--socket", folder / "runner.sock", "--jobs-dir", folder),
                ],
                env={"AIRFLOW_HOME": str(self._root / "warm-up"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"},
                cwd=folder,
                log=self._root / "warm-up.log",
            )
            try:
                wait_until((folder / "runner.sock").exists, seconds=60, what="the runner to listen", poll_seconds=0.01)
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.connect(str(folder / "runner.sock"))
                    for line in connection.makefile("rb"):
                        message = json.loads(line)
                        if message["ev"] == "ready" or message.get("ready"):
                            return time.monotonic() - began
                raise BenchError(f"the runner did not become ready, see {runner.log}")
            finally:
                runner.stop()

    def _runner_program(self) -> Path:
        (program,) = self._environment.glob("lib/python*/site-packages/airflow_edge_agent/runner/__main__.py")
        return program


class PeerArm:
    """The worker of ``apache-airflow-providers-edge3``."""

    label = "edge3"
    request_path = "/edge_worker/"
    executor = "airflow.providers.edge3.executors.EdgeExecutor"

    def __init__(self, root: Path, keeper: Keeper, *, environment: Path) -> None:
        self.settings = {"AIRFLOW__EDGE__API_ENABLED": "True"}
        self._root = root
        self._keeper = keeper
        self._environment = environment
        self._worker: Managed | None = None
        # Its logs go to the api-server's disk: there is no table to look into.
        self.log_watch: Callable[[], psutil.Process] | None = None
        self.warm_up: Callable[[], float] | None = None

    def start(self, site: AirflowSite) -> None:
        """Start the worker. It reads the same Dag folder as Airflow, as its documentation has it."""
        self._root.mkdir(parents=True, exist_ok=True)
        self._worker = self._keeper.spawn(
            "edge3 worker",
            [
                self._environment / "bin" / "airflow",
                *("edge", "worker", "--concurrency", str(CONCURRENCY), "--edge-hostname", "bench-peer"),
            ],
            env=site.env()
            | {
                "AIRFLOW_HOME": str(self._root),
                "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(self._root / "logs"),
                "AIRFLOW__EDGE__API_URL": f"{site.url}/edge_worker/v1/rpcapi",
            },
            cwd=self._root,
            log=self._root / "worker.log",
        )

    def stop(self) -> None:
        """Stop the worker."""
        if self._worker is not None:
            self._worker.stop()

    def _processes(self) -> tuple[psutil.Process, list[psutil.Process]]:
        assert self._worker is not None
        return psutil.Process(self._worker.pid), descendants(self._worker.pid)

    def cpu_seconds(self) -> tuple[float, float]:
        """CPU time of the worker itself, and of supervisors and tasks."""
        worker, children = self._processes()
        times = worker.cpu_times()
        ended = times.children_user + times.children_system
        return times.user + times.system, ended + sum(_each(children, _cpu_seconds))

    def idle_pss_bytes(self) -> int:
        """Memory of the worker and of what it keeps running beside."""
        worker, children = self._processes()
        return int(sum(_each([worker, *children], _pss_bytes)))

    def resting(self) -> bool:
        """Whether no supervisor and no task is left. A log or resource tracker of its own may stay."""
        _, children = self._processes()
        return not any("supervisor" in " ".join(command) for command in _each(children, psutil.Process.cmdline))

    def job_pss_bytes(self) -> int:
        """Memory of supervisors and tasks."""
        _, children = self._processes()
        return int(sum(_each(children, _pss_bytes)))

    def total_pss_bytes(self) -> int:
        """Memory of the worker and of everything below it."""
        return self.idle_pss_bytes()


def _each(processes: list[psutil.Process], read: Callable[[psutil.Process], _T]) -> list[_T]:
    """Apply ``read`` to each process that still lives."""
    found = []
    for process in processes:
        try:
            found.append(read(process))
        except psutil.NoSuchProcess:
            continue
    return found


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def _pss_bytes(process: psutil.Process) -> float:
    return float(process.memory_full_info().pss)
