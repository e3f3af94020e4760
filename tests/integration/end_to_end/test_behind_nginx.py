"""Agents served by two processes of their own, behind the nginx that the documents describe."""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trustme

from harness.agent import AgentProcess
from harness.ports import reserve_port
from harness.postgres import Postgres
from harness.processes import Keeper, Managed
from harness.site import START_SECONDS, AirflowSite
from harness.waiting import wait_until
from integration.end_to_end.conftest import DAGS, ENVIRONMENT
from integration.end_to_end.test_end_to_end import wait_for_note

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
DOCUMENT = Path(__file__).parents[3] / "docs" / "nginx.md"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(NGINX is None, reason="no nginx: apt-get install nginx-light"),
]


def accepts(uds: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as trial:
        return trial.connect_ex(str(uds)) == 0


def status(url: str, *, uds: Path | None = None, verify: ssl.SSLContext | bool = True) -> int:
    """Ask for a page; 0: nobody answers."""
    if uds is not None and not accepts(uds):
        # httpx would leave the socket open that it could not connect.
        return 0
    transport = httpx.HTTPTransport(uds=None if uds is None else str(uds), verify=verify)
    try:
        with httpx.Client(transport=transport, timeout=10) as client:
            return client.get(url).status_code
    except httpx.TransportError:
        return 0


@dataclass
class Replica:
    """One ``airflow edge-agents api-server``."""

    site: AirflowSite
    name: str
    port: int | None = None
    uds: Path | None = None
    process: Managed | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}" if self.uds is None else f"unix:{self.uds}"

    def status(self, path: str) -> int:
        return status(f"http://127.0.0.1:{self.port or 80}{path}", uds=self.uds)

    def start(self) -> None:
        where = ["--port", str(self.port)] if self.uds is None else ["--uds", str(self.uds), "--workers", "2"]
        process = self.site.keeper.spawn(
            self.name,
            [ENVIRONMENT / "bin" / "airflow", "edge-agents", "api-server", "--proxy-headers", *where],
            env=self.site.env(),
            cwd=self.site.root,
            log=self.site.logs / f"{self.name}.log",
        )
        wait_until(
            lambda: not process.running or self.status("/health") == 200,
            seconds=START_SECONDS,
            what=f"{self.name} to be healthy",
            seen=lambda: process.tail(5),
        )
        assert process.running, process.tail(20)
        self.process = process

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill_tree()


@pytest.fixture(scope="module")
def site(postgres_server: Postgres, keeper: Keeper, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowSite]:
    site = AirflowSite(
        tmp_path_factory.mktemp("site-nginx"),
        keeper=keeper,
        environment=ENVIRONMENT,
        bundles={"probes": DAGS},
        database_url=postgres_server.create_database(),
    )
    with site:
        site.start()
        site.api.wait_for_dag("steps")
        yield site


@pytest.fixture(scope="module")
def replicas(site: AirflowSite) -> Iterator[tuple[Replica, Replica]]:
    with tempfile.TemporaryDirectory(prefix="edge-nginx-") as folder:
        found = (
            Replica(site, "agent-api-one", port=reserve_port()),
            Replica(site, "agent-api-two", uds=Path(folder) / "api.sock"),
        )
        for replica in found:
            replica.start()
        yield found
        for replica in found:
            if replica.process is not None:
                replica.process.stop()


@dataclass
class Proxy:
    """A running nginx with the documented configuration, and what is behind it."""

    replicas: tuple[Replica, Replica]
    url: str
    trusted: Path
    access_log: Path

    def status(self, path: str) -> int:
        return status(f"{self.url}{path}", verify=ssl.create_default_context(cafile=str(self.trusted)))

    def served_by(self, path: str) -> set[str]:
        """Return where requests whose path begins so have gone."""
        lines = [line.split("|") for line in self.access_log.read_text().splitlines()]
        # Several, where one did not answer.
        return {one for asked, where in lines if asked.startswith(path) for one in where.split(", ")}


@pytest.fixture(scope="module")
def nginx(site: AirflowSite, replicas: tuple[Replica, Replica], keeper: Keeper) -> Iterator[Proxy]:
    folder = site.root / "nginx"
    folder.mkdir()
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    certificate.private_key_pem.write_to_path(str(folder / "airflow.key"))
    for part in certificate.cert_chain_pems:
        part.write_to_path(str(folder / "airflow.crt"), append=True)
    port = reserve_port()
    found = re.search(r"```nginx\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert found is not None
    documented = found[1]
    for theirs, ours in {
        "10.0.0.11:8080": f"127.0.0.1:{site.port}",
        "10.0.0.21:8085": replicas[0].address,
        "unix:/run/airflow-edge-agents/api.sock": replicas[1].address,
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "airflow.example.com": "localhost",
        "/etc/nginx/": f"{folder}/",
    }.items():
        assert theirs in documented
        documented = documented.replace(theirs, ours)
    temporary = "\n".join(
        f"    {kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = folder / "nginx.conf"
    configuration.write_text(
        f"{'user root root;' if os.getuid() == 0 else ''}\ndaemon off;\nworker_processes 2;\n"
        f"pid {folder}/pid;\nerror_log {folder}/error.log;\nevents {{ worker_connections 256; }}\n"
        f"http {{\n{temporary}\n    log_format short '$uri|$upstream_addr';\n"
        f"    access_log {folder}/access.log short;\n"
        f"{documented}\n}}\n"
    )
    assert NGINX is not None
    command: list[str | Path] = [NGINX, "-p", folder, "-e", folder / "error.log", "-c", configuration]
    process = keeper.spawn("nginx", command, env={}, cwd=folder, log=folder / "output.log")
    proxy = Proxy(replicas, f"https://localhost:{port}", folder / "ca.pem", folder / "access.log")
    wait_until(
        lambda: not process.running or proxy.status("/api/v2/monitor/health") == 200,
        seconds=60,
        what="nginx to pass a request on",
        seen=lambda: process.tail(5),
    )
    assert process.running, process.tail(20)
    yield proxy
    process.stop()


StartAgent = Callable[..., AgentProcess]


@pytest.fixture
def start(site: AirflowSite, nginx: Proxy, keeper: Keeper, tmp_path: Path) -> Iterator[StartAgent]:
    agents: list[AgentProcess] = []

    def begin(name: str, carrier: str) -> AgentProcess:
        agent = AgentProcess(
            tmp_path / name,
            keeper=keeper,
            environment=ENVIRONMENT,
            runtime=ENVIRONMENT,
            server_url=nginx.url,
            token=site.create_join_token(name),
            name=name,
            bundles={"probes": DAGS},
            settings={"execution_api": "relay", "ca_file": str(nginx.trusted), "carrier": carrier},
        )
        agents.append(agent)
        agent.start()
        agent.wait_for_log("connected")
        return agent

    yield begin
    for agent in agents:
        agent.close()


def test_what_is_served_where(replicas: tuple[Replica, Replica], nginx: Proxy) -> None:
    for replica in replicas:
        assert [replica.status(path) for path in ("/health", "/", "/api/v2/version", "/execution/health")] == [
            200,
            404,
            404,
            404,
        ]
        # Not even whether there is such a thing is told to strangers.
        assert replica.status("/edge-agents/v1/admin/me") == 401
        assert replica.status("/edge-agents/v1/exchange") == 401
    assert replicas[1].uds is not None
    assert stat.S_IMODE(replicas[1].uds.stat().st_mode) == 0o660
    assert nginx.status("/api/v2/version") == 200
    assert nginx.status("/edge-agents/ui/edge-agents.js") == 200
    assert nginx.status("/edge-agents/v1/exchange") == 401
    # Not logged in; by the api-server, for the other ones have no such thing.
    assert nginx.status("/edge-agents/v1/admin/me") == 401
    apart = {replica.address for replica in replicas}
    assert not nginx.served_by("/edge-agents/v1/admin") & apart
    assert nginx.served_by("/edge-agents/v1/exchange") <= apart


@pytest.mark.parametrize("carrier", ["websocket", "http"])
def test_a_task_goes_on_when_either_process_is_killed(
    site: AirflowSite, nginx: Proxy, start: StartAgent, tmp_path: Path, carrier: str
) -> None:
    agent = start(f"behind-{carrier}", carrier)
    # Each is killed once, so the one that the agent is connected to is among them.
    for number, replica in enumerate(nginx.replicas):
        folder = tmp_path / str(number)
        folder.mkdir()
        run = site.api.trigger_dag("steps", conf={"dir": str(folder)})
        wait_for_note(folder, "began")
        replica.kill()
        try:
            (folder / "go").touch()
            assert site.api.wait_for_run("steps", run) == "success"
            # The task tells Airflow itself; its agent may have to find a server for its own report first.
            query = f"SELECT agent_name, fence, outcome FROM edge_agent_job WHERE run_id = '{run}'"
            wait_until(
                lambda: site.query(query) == [(agent.name, 1, "finished")],  # noqa: B023  called at once
                seconds=60,
                what="the agent to report the end",
                seen=lambda: site.query(query),  # noqa: B023  as above
            )
        finally:
            replica.start()
    assert agent.stop() == 0
    assert f"carrier={carrier}" in agent.log_text()
    # All of it, the tasks' own calls included, went to the processes of the agent API.
    # nginx writes the name of them all where it knew of none that lives.
    apart = {replica.address for replica in nginx.replicas} | {"edge_agents"}
    for path in ("/edge-agents/v1/exchange", "/edge-agents/v1/channel", "/edge-agents/v1/jobs"):
        assert nginx.served_by(path) <= apart
    assert nginx.served_by("/edge-agents/v1/jobs")


def test_it_ends_at_once_when_asked_to(replicas: tuple[Replica, Replica], start: StartAgent) -> None:
    """Also while an agent is connected and polls wait."""
    start("behind-polls", "http")
    for replica in replicas:
        assert replica.process is not None
        assert replica.process.stop(15) in (0, -15)
        assert replica.process.exit_code is not None
        assert replica.uds is None or not replica.uds.exists()
        replica.start()
