"""How the pages look: pictures of each for people, and what axe finds in them."""

from __future__ import annotations

import pytest
from playwright.sync_api import Route, expect

from ui.browser import Scheme
from ui.conftest import ENVIRONMENT, Busy, Fleet, Visit

pytestmark = pytest.mark.integration

LOOKS = [("desktop", "light"), ("desktop", "dark"), ("phone", "light")]

PAGES = {
    "overview": ("", "Overview", "Agents connected"),
    "agents": ("agents", "Agents", "press-01"),
    "agent": ("agents/press-01", "press-01", "shown.counts"),
    "queues": ("queues", "Queues", "nowhere"),
    "jobs": ("jobs", "Jobs", "lost.stuck"),
    "add": ("add", "Add an agent", "Make a join token"),
}


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
@pytest.mark.parametrize("name", PAGES)
def test_no_barriers(visit: Visit, busy: Busy, name: str, size: str, scheme: Scheme) -> None:
    path, heading, content = PAGES[name]
    visitor = visit(size=size, scheme=scheme)
    page = visitor.go(path, heading=heading)
    expect(page.get_by_text(content).first).to_be_visible()
    visitor.picture(name)
    assert visitor.barriers() == []
    assert visitor.faults == []
    # Nothing but tables may be wider than the screen.
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_an_agents_page_for_the_documents(fleet: Fleet, visit: Visit, busy: Busy) -> None:
    agent = fleet.agents["press-01"]
    # Where a package would have put what a test has in folders of its own.
    folders = {
        str(agent.settings["runtime_dir"]): "/run/airflow-edge-agent",
        str(agent.state_dir): "/var/lib/airflow-edge-agent",
        str(agent.root): "/var/lib/airflow-edge-agent",
        str(ENVIRONMENT): "/opt/airflow-edge-runtime",
    }

    def as_installed(route: Route) -> None:
        answer = route.fetch()
        text = answer.text()
        for here, there in folders.items():
            text = text.replace(here, there)
        route.fulfill(response=answer, body=text)

    visitor = visit(size="tall")
    visitor.page.route("**/v1/admin/agents/press-01", as_installed)
    page = visitor.go("agents/press-01", heading="press-01")
    # One figure a minute is kept.
    expect(page.get_by_role("img", name="CPU: now")).to_be_visible(timeout=90_000)
    configuration = page.get_by_role("region", name="Configuration")
    expect(configuration).to_contain_text("/opt/airflow-edge-runtime/bin/python")
    assert str(fleet.folder) not in configuration.inner_text()
    visitor.picture("agent")
