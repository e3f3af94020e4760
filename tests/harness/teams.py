"""A real Airflow with teams: an executor and a Dag for each, and a Dag that belongs to none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from harness.processes import Keeper
from harness.site import EDGE_EXECUTOR, AirflowSite

TEAMS = ("blue", "red")
BUNDLES = (*TEAMS, "common")
"""The bundle of each team, by its name, and that of nobody; each has one Dag, see :func:`dag_of`."""

_DAG = """
from airflow.sdk import dag, task

@dag(dag_id="{name}_work", schedule=None, catchup=False)
def work():
    @task(retries=0)
    def member(number):
        return number
    member.expand(number=[1, 2, 3])

work()
"""


def dag_of(bundle: str) -> str:
    """Return the Dag in a bundle; its task ``member`` is mapped to three."""
    return f"{bundle}_work"


def bundle_folders(site: AirflowSite) -> dict[str, Path]:
    """Return where the bundles are."""
    return {name: site.root / "dags" / name for name in BUNDLES}


def make_site_with_teams(
    root: Path, *, keeper: Keeper, environment: Path, settings: Mapping[str, str] | None = None
) -> AirflowSite:
    """Return a site that is not started."""
    bundles = []
    for name in BUNDLES:
        folder = root / "dags" / name
        folder.mkdir(parents=True)
        (folder / "work.py").write_text(_DAG.format(name=name))
        bundle: dict[str, object] = {
            "name": name,
            "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
            "kwargs": {"path": str(folder)},
        }
        bundles.append(bundle | ({"team_name": name} if name in TEAMS else {}))
    given = {
        "AIRFLOW__CORE__MULTI_TEAM": "True",
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
        **(settings or {}),
    }
    executor = ";".join([EDGE_EXECUTOR, *(f"{team}={EDGE_EXECUTOR}" for team in TEAMS)])
    return AirflowSite(root, keeper=keeper, environment=environment, bundles={}, executor=executor, settings=given)


def start_with_teams(site: AirflowSite) -> None:
    """Start the site, and wait until its Dags are known."""
    # Nothing starts without the teams of its users and bundles.
    site.start(())
    for team in TEAMS:
        site.cli("teams", "create", team)
    site.start()
    for name in BUNDLES:
        site.api.wait_for_dag(dag_of(name))
