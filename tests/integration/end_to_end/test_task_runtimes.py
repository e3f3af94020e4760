"""Task runtimes of other Airflow versions under this server. They are made by ``make test-runtimes``."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.agent import AgentProcess
from harness.processes import Keeper
from harness.site import AirflowSite
from harness.waiting import wait_until
from integration.end_to_end.conftest import DAGS, ENVIRONMENT

pytestmark = pytest.mark.integration

DEMO_DAGS = Path(__file__).parents[2] / "demo" / "dags"

RUNTIMES = [Path(path) for path in os.environ.get("EDGE_TEST_RUNTIMES", "").split(os.pathsep) if path]


@pytest.fixture(scope="module")
def demo_site(keeper: Keeper, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowSite]:
    root = tmp_path_factory.mktemp("site-runtimes")
    bundles = {"demo": DEMO_DAGS, "probes": DAGS}
    with AirflowSite(root, keeper=keeper, environment=ENVIRONMENT, bundles=bundles) as site:
        site.start()
        for dag_id in ("edge_demo", "everything"):
            site.api.wait_for_dag(dag_id)
        yield site


@pytest.mark.skipif(not RUNTIMES, reason="no task runtimes of other versions: see make test-runtimes")
@pytest.mark.parametrize("runtime", RUNTIMES, ids=lambda path: path.name)
@pytest.mark.parametrize("way", ["relay", "direct"])
def test_the_demo_runs(way: str, runtime: Path, demo_site: AirflowSite, keeper: Keeper, tmp_path: Path) -> None:
    probe = "from importlib.metadata import version; print(version('apache-airflow-task-sdk'))"
    sdk = subprocess.run(
        [runtime / "bin" / "python", "-c", probe], capture_output=True, text=True, check=True
    ).stdout.strip()
    name = f"edge-{runtime.name}-{way}"
    bundles = {"demo": DEMO_DAGS, "probes": DAGS}
    with AgentProcess(
        tmp_path / "agent",
        keeper=keeper,
        environment=ENVIRONMENT,
        runtime=runtime,
        server_url=demo_site.url,
        token=demo_site.create_join_token(name),
        name=name,
        bundles=bundles,
        settings={"execution_api": way},
    ) as agent:
        agent.start()
        agent.wait_for_log("connected")
        demo = demo_site.api.trigger_dag("edge_demo")
        probes = demo_site.api.trigger_dag("everything", conf={"dir": str(tmp_path)})
        assert demo_site.api.wait_for_run("edge_demo", demo) == "success"
        assert demo_site.api.wait_for_run("everything", probes) == "success"
        assert demo_site.api.xcom("everything", probes, "total") == 12
        shell = demo_site.api.log(demo_site.api.task_instance("edge_demo", demo, "shell"))
        assert any("says hello from a shell" in line.event for line in shell)
        versions = f"SELECT versions FROM edge_agent WHERE name = '{name}'"
        wait_until(
            # The runtime is looked at beside the first hello, so a heartbeat may have to tell.
            lambda: f'"task_sdk": "{sdk}"' in str(demo_site.query(versions)[0][0]),
            seconds=60,
            what="the version of the task runtime at the server",
        )
        fields = f"dags/edge_demo/dagRuns/{demo}/taskInstances/shell"
        shown = demo_site.api.request("GET", f"/api/v2/{fields}").json()["rendered_fields"]
        assert "says hello from a shell" in str(shown)
        print(f"FIGURE task runtime {sdk}, {way}: demo and probes succeeded")
