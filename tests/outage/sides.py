"""Who runs the tasks beyond the link: our agent, or the worker of the edge3 provider, each with its own Airflow."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from faults.proxy import FaultProxy
from harness.agent import AgentProcess
from harness.processes import Keeper, Managed, ProcessError
from harness.site import EDGE_EXECUTOR, AirflowSite
from harness.waiting import wait_until
from outage.clocks import Clocks

PROJECT = Path(__file__).resolve().parents[2]
DAGS = Path(__file__).with_name("dags")
ENVIRONMENT = Path(sys.prefix)
PEER_ENVIRONMENT = PROJECT / ".bench" / "env-peer"
DAG_ID = "partition"
CONCURRENCY = 8
BUNDLE = "outage"
_SECONDS = 120.0
"""How long anything may take to come up."""


class Side(ABC):
    """An Airflow, a link that can be cut, and what runs tasks beyond it."""

    label: str

    def __init__(
        self,
        root: Path,
        *,
        keeper: Keeper,
        database_url: str,
        environment: Path,
        executor: str,
        settings: Mapping[str, str],
    ) -> None:
        self.root = root
        self.keeper = keeper
        self.site = AirflowSite(
            root / "site",
            keeper=keeper,
            environment=environment,
            bundles={BUNDLE: DAGS},
            database_url=database_url,
            executor=executor,
            settings=settings,
        )
        self.worker: Managed | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.site)
            self.site.start()
            self.proxy = stack.enter_context(FaultProxy(self.site.port))
            stack.callback(self.end_worker)
            self.start_worker()
            self.site.api.wait_for_dag(DAG_ID, seconds=_SECONDS)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @abstractmethod
    def start_worker(self) -> None:
        """Start what runs the tasks, and wait until Airflow knows it."""

    @abstractmethod
    def end_worker(self) -> int | None:
        """Stop it and all that it runs; return its exit code, if it ended on being asked."""

    @abstractmethod
    def worker_state(self) -> str:
        """Return what Airflow shows of it."""

    def worker_says(self) -> str:
        """Return what its own command says of the link; nothing, if there is none such."""
        return ""


class OurSide(Side):
    """Our agent, which relays the Execution API.

    :param settings: further settings of the agent.
    """

    label = "airflow-edge-agent"

    def __init__(
        self,
        root: Path,
        *,
        keeper: Keeper,
        database_url: str,
        clocks: Clocks,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(
            root,
            keeper=keeper,
            database_url=database_url,
            environment=ENVIRONMENT,
            executor=EDGE_EXECUTOR,
            settings=clocks.airflow() | clocks.ours(),
        )
        self._agent: AgentProcess | None = None
        self._settings = {"execution_api": "relay"} | dict(settings or {})

    @property
    def agent(self) -> AgentProcess:
        """The agent, once started."""
        assert self._agent is not None
        return self._agent

    def start_worker(self) -> None:
        self._agent = AgentProcess(
            self.root / "agent",
            keeper=self.keeper,
            environment=ENVIRONMENT,
            runtime=ENVIRONMENT,
            server_url=self.proxy.url,
            token=self.site.create_join_token("edge"),
            name="edge",
            concurrency=CONCURRENCY,
            bundles={BUNDLE: DAGS},
            settings=self._settings,
        )
        self.worker = self._agent.start()
        self._agent.wait_for_log("connected", seconds=_SECONDS)

    def end_worker(self) -> int | None:
        if self._agent is None:
            return None
        code: int | None
        try:
            code = self._agent.stop(60)
        except ProcessError:
            code = None
        self._agent.close()
        return code

    def worker_state(self) -> str:
        return str(self.site.query("SELECT state FROM edge_agent WHERE name = 'edge'")[0][0]).replace("_", " ")

    def worker_says(self) -> str:
        return self.agent.status(_SECONDS)


class PeerSide(Side):
    """The worker of ``apache-airflow-providers-edge3`` in a stock Airflow, both with their own defaults."""

    label = "edge3"

    def __init__(self, root: Path, *, keeper: Keeper, database_url: str, clocks: Clocks) -> None:
        super().__init__(
            root,
            keeper=keeper,
            database_url=database_url,
            environment=PEER_ENVIRONMENT,
            executor="airflow.providers.edge3.executors.EdgeExecutor",
            settings=clocks.airflow() | clocks.worker() | {"AIRFLOW__EDGE__API_ENABLED": "True"},
        )

    def start_worker(self) -> None:
        root = self.root / "worker"
        root.mkdir(exist_ok=True)
        self.worker = self.keeper.spawn(
            "edge3 worker",
            [
                PEER_ENVIRONMENT / "bin" / "airflow",
                *("edge", "worker", "--concurrency", str(CONCURRENCY), "--edge-hostname", "edge"),
            ],
            env=self.site.env()
            | {
                "AIRFLOW_HOME": str(root),
                "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(root / "logs"),
                # Everything goes over the link.
                "AIRFLOW__EDGE__API_URL": f"{self.proxy.url}/edge_worker/v1/rpcapi",
                "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.proxy.url}/execution/",
            },
            cwd=root,
            log=root / "worker.log",
        )
        wait_until(
            lambda: self.worker_state() in {"idle", "running"},
            seconds=_SECONDS,
            what="Airflow to know the edge3 worker",
            poll_seconds=0.5,
            seen=self.worker.tail,
        )

    def end_worker(self) -> int | None:
        if self.worker is None:
            return None
        code = self.worker.stop(20)
        return None if code < 0 else code

    def worker_state(self) -> str:
        rows = self.site.query("SELECT state FROM edge_worker WHERE worker_name = 'edge'")
        return str(rows[0][0]).rpartition(".")[2].lower() if rows else "not known"
