"""The pages where Airflow has teams: whose an agent is, and what of it is seen by whom."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from harness.processes import Keeper
from harness.site import USER
from harness.teams import bundle_folders, dag_of, make_site_with_teams, start_with_teams
from ui.conftest import ENVIRONMENT, Fleet, Visit, log_in, windows

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def teams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """An agent of blue and one of nobody, and a job of each team, red's waiting; rita is an operator of red's."""
    root = tmp_path_factory.mktemp("ui-teams")
    settings = {"AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin,rita:op:red"}
    with (
        Keeper() as keeper,
        make_site_with_teams(root / "site", keeper=keeper, environment=ENVIRONMENT, settings=settings) as site,
    ):
        start_with_teams(site)
        fleet = Fleet(site, root, keeper, bundle_folders(site))
        try:
            fleet.start("of-blue", ["default"], secret=site.create_join_token("of-blue", "--team", "blue"))
            fleet.start("of-nobody", ["default"])
            fleet.wait()
            runs = {name: site.api.trigger_dag(dag_of(name)) for name in ("blue", "red")}
            assert site.api.wait_for_run(dag_of("blue"), runs["blue"]) == "success"
            yield fleet
        finally:
            fleet.close()


@pytest.fixture
def visit_teams(teams: Fleet, browser: Browser) -> Iterator[Visit]:
    with windows(browser, teams.site, log_in(teams.site, USER, "rita")) as visit:
        yield visit


def test_an_agent_is_added_to_a_team(teams: Fleet, visit_teams: Visit) -> None:
    visitor = visit_teams()
    page = visitor.go("queues", heading="Queues")
    expect(page.get_by_text("Queue default of team red: jobs wait")).to_be_visible()
    page = visitor.go("add", heading="Add an agent")
    team = page.get_by_label("Team")
    expect(team.get_by_role("option")).to_have_text(["none: jobs of no team", "blue", "red"])
    team.select_option("red")
    page.get_by_label("Name").fill("of-red")
    page.get_by_role("button", name="Make a join token").click()
    expect(page.locator("[data-token=of-red]").get_by_role("cell", name="red", exact=True)).to_be_visible()
    secret = page.locator("code", has_text="eaj_").inner_text()
    teams.start("of-red", ["default"], secret=secret)
    expect(page.get_by_text("of-red is here")).to_be_visible(timeout=60_000)
    expect(page.get_by_text("and serves default of team red.")).to_be_visible()
    assert visitor.barriers() == []

    page = visitor.go("agents", heading="Agents")
    expect(page.locator("[data-agent=of-red]")).to_contain_text("of team red")
    expect(page.locator("[data-agent=of-blue]")).to_contain_text("of team blue")
    expect(page.locator("[data-agent=of-nobody]")).not_to_contain_text("of team")
    visitor.picture("teams")
    page.get_by_role("link", name="of-red").click()
    expect(page.get_by_role("region", name="Work")).to_contain_text("Teamred")

    page = visitor.go("jobs?state=finished", heading="Jobs")
    done = page.locator("[data-job]").filter(has_text=dag_of("red"))
    expect(done).to_have_count(3, timeout=120_000)
    expect(done.first).to_contain_text("default of team red")
    expect(done.first).to_contain_text("of-red")
    page = visitor.go("queues", heading="Queues")
    expect(page.locator("[data-queue=default]")).to_have_count(3)
    expect(page.locator("[data-queue=default]").filter(has_text="of team red")).to_be_visible()
    assert visitor.faults == []


def test_who_belongs_to_a_team_sees_what_is_of_it_and_of_none(teams: Fleet, visit_teams: Visit) -> None:
    visitor = visit_teams("rita")
    page = visitor.go("agents", heading="Agents")
    expect(page.locator("[data-agent=of-nobody]")).to_be_visible()
    expect(page.locator("[data-agent=of-blue]")).to_have_count(0)
    expect(page.get_by_role("checkbox", name="Choose of-nobody")).to_be_enabled()
    page = visitor.go("jobs", heading="Jobs")
    expect(page.locator("[data-job]").filter(has_text=dag_of("red")).first).to_be_visible()
    expect(page.locator("[data-job]").filter(has_text=dag_of("blue"))).to_have_count(0)
    page = visitor.go("queues", heading="Queues")
    expect(page.get_by_role("row").filter(has_text="of team red").first).to_be_visible()
    expect(page.get_by_text("of team blue")).to_have_count(0)
    page = visitor.go("add", heading="Add an agent")
    expect(page.get_by_label("Team").get_by_role("option")).to_have_text(["none: jobs of no team", "red"])
    assert visitor.faults == []
    # The page only spares them the attempt; it is the server that refuses.
    answers = page.evaluate(
        """async () => {
            const ask = async (path, body) => (await fetch(new URL(`edge-agents/v1/admin/${path}`, document.baseURI), {
                method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body),
            })).text();
            return [
                await ask("join-tokens", {name_pattern: "x", queues: ["*"], team: "blue"}),
                await ask("agents/of-blue/drain", {on: true}),
            ];
        }"""
    )
    assert answers == [
        """{"detail":"there is no team 'blue': there are red"}""",
        """{"detail":"there is no agent called 'of-blue'"}""",
    ]
    page = visitor.go("agents/of-blue")
    expect(page.get_by_text("There is no agent of-blue")).to_be_visible()
