"""One Airflow with a small fleet for all tests: an agent in each condition that the pages have to show."""

from __future__ import annotations

import json
import os
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from harness.agent import AgentProcess
from harness.processes import Keeper
from harness.site import USER, AirflowSite
from ui.browser import AXE, NAMES, Scheme, Visitor, find_browser, launch, token

ENVIRONMENT = Path(sys.prefix)
DAGS = Path(__file__).parent / "dags"
PICTURES = Path(__file__).parents[2] / ".screenshots"


def _minor_before(distribution: str) -> str:
    major, minor, _ = version(distribution).split(".", 2)
    return f"{major}.{int(minor) - 1}.2"


OTHER_SDK, OTHER_AIRFLOW = map(_minor_before, ("apache-airflow-task-sdk", "apache-airflow-core"))

Visit = Callable[..., Visitor]


@dataclass
class Fleet:
    """The site and its agents."""

    site: AirflowSite
    folder: Path
    keeper: Keeper
    bundles: Mapping[str, Path]
    agents: dict[str, AgentProcess] = field(default_factory=dict)

    def start(self, name: str, queues: list[str], *, runtime: Path = ENVIRONMENT, secret: str | None = None) -> None:
        """Start an agent."""
        agent = AgentProcess(
            self.folder / name,
            keeper=self.keeper,
            environment=ENVIRONMENT,
            runtime=runtime,
            server_url=self.site.url,
            token=secret or self.site.create_join_token(name),
            name=name,
            queues=queues,
            bundles=self.bundles,
        )
        self.agents[name] = agent
        agent.start()

    def wait(self) -> None:
        """Wait until all are connected."""
        for agent in self.agents.values():
            if agent.running:
                agent.wait_for_log("connected")

    def close(self) -> None:
        """End the agents."""
        for agent in self.agents.values():
            agent.close()


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    root = tmp_path_factory.mktemp("ui")
    settings = {
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin,viewer:viewer",
        # What becomes of agents and figures is to be seen within a test's patience.
        "AIRFLOW__EDGE_AGENT__HEARTBEAT_INTERVAL": "2",
        "AIRFLOW__EDGE_AGENT__AGENT_TIMEOUT": "20",
        "AIRFLOW__EDGE_AGENT__DISCONNECT_GRACE": "60",
    }
    with Keeper() as keeper:
        site = AirflowSite(
            root / "site", keeper=keeper, environment=ENVIRONMENT, bundles={"shown": DAGS}, settings=settings
        )
        with site:
            site.start()
            fleet = Fleet(site, root, keeper, {"shown": DAGS})
            try:
                fleet.start("press-01", ["plant", "default"])
                fleet.start("press-02", ["plant"])
                fleet.start("lab-7", ["lab"], runtime=Path("/opt/no-runtime"))
                fleet.start("mill-3", ["mill"], runtime=_older_runtime(root / "older"))
                fleet.start("ship-anna", ["sea"])
                fleet.wait()
                fleet.agents["ship-anna"].stop()
                site.cli("edge-agents", "maintenance", "on", "press-02", "--comment", "new disk")
                for dag in ("shown", "lost"):
                    site.api.wait_for_dag(dag)
                yield fleet
            finally:
                fleet.close()


@dataclass(frozen=True)
class Busy:
    """What runs, and what waits for ever."""

    run_id: str
    go: Path
    """Ends the running task when it is there."""


@pytest.fixture(scope="session")
def busy(fleet: Fleet) -> Busy:
    """Have a task that has ended, one that runs, and one whose queue nobody serves."""
    api = fleet.site.api
    go = fleet.folder / "go"
    run_id = api.trigger_dag("shown", conf={"go": str(go)})
    api.trigger_dag("lost")
    api.wait_for_state("shown", run_id, "waits", {"running"})
    return Busy(run_id, go)


def _older_runtime(folder: Path) -> Path:
    """Make a task runtime that says of itself to be older: with the packages of this one, but another label on them."""
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name, older in (("apache-airflow-task-sdk", OTHER_SDK), ("apache-airflow-core", OTHER_AIRFLOW)):
        info = packages / f"{name.replace('-', '_')}-{older}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {older}\n")
    # What a path file adds comes behind the folder that it is in.
    shared = sysconfig.get_path("purelib")
    (packages / "shared.pth").write_text(f"import site; site.addsitedir({shared!r})\n")
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.fail(f"no browser: none of {', '.join(NAMES)} is on the PATH; apt-get install chromium")
    if not AXE.exists():
        pytest.fail(f"{AXE} is missing: run 'make test-ui', or 'npm ci' in server/ui")
    with sync_playwright() as playwright:
        browser = launch(playwright, program)
        yield browser
        browser.close()


def log_in(site: AirflowSite, *users: str) -> dict[str, str]:
    """Return a token of each."""
    passwords = json.loads((site.home / "passwords.json").read_text())
    return {user: token(site, user, passwords[user]) for user in users}


@contextmanager
def windows(browser: Browser, site: AirflowSite, tokens: Mapping[str, str]) -> Iterator[Visit]:
    """Yield what opens a browser window for somebody; all are closed in the end."""
    visitors: list[Visitor] = []

    def open_window(user: str = USER, *, size: str = "desktop", scheme: Scheme = "light") -> Visitor:
        pictures = Path(os.environ.get("EDGE_TEST_PICTURES", PICTURES))
        visitors.append(Visitor(browser, site, tokens[user], pictures, size=size, scheme=scheme))
        return visitors[-1]

    yield open_window
    for visitor in visitors:
        visitor.close()


@pytest.fixture(scope="session")
def tokens(fleet: Fleet) -> dict[str, str]:
    return log_in(fleet.site, USER, "viewer")


@pytest.fixture
def visit(fleet: Fleet, browser: Browser, tokens: dict[str, str]) -> Iterator[Visit]:
    """Open a browser window for somebody."""
    with windows(browser, fleet.site, tokens) as visit:
        yield visit
