"""How the pages look: pictures of each for people, and what axe finds in them."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from ui.browser import Scheme
from ui.conftest import Busy, Visit

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
