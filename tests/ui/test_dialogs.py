"""The dialogs that ask before something is done: what axe finds in them, and pictures of each."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page, expect

from ui.browser import Scheme
from ui.conftest import Busy, Fleet, Visit
from ui.test_orders import give

pytestmark = pytest.mark.integration

LOOKS = [("desktop", "light"), ("desktop", "dark"), ("phone", "light")]


def order_of(name: str, order: str) -> Callable[[Page], None]:
    def begin(page: Page) -> None:
        page.goto(f"/plugin/edge-agents/agents/{name}")
        expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
        give(page, order)

    return begin


def cancel(page: Page) -> None:
    page.goto("/plugin/edge-agents/jobs?state=running")
    page.get_by_role("button", name="Cancel waits").first.click()


DIALOGS: dict[str, Callable[[Page], None]] = {
    "maintenance": order_of("mill-3", "Start maintenance"),
    "drain": order_of("mill-3", "Drain"),
    "slots": order_of("mill-3", "Change slots"),
    "queues": order_of("mill-3", "Change queues"),
    "revoke": order_of("mill-3", "Revoke"),
    "remove": order_of("ship-anna", "Remove"),
    "cancel": cancel,
}


def dialog(page: Page) -> Locator:
    return page.get_by_role("dialog").or_(page.get_by_role("alertdialog"))


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
def test_no_barriers_in_dialogs(visit: Visit, busy: Busy, size: str, scheme: Scheme) -> None:
    visitor = visit(size=size, scheme=scheme)
    page = visitor.page
    for name, begin in DIALOGS.items():
        begin(page)
        expect(dialog(page)).to_be_visible()
        visitor.picture(f"dialog-{name}")
        assert page.evaluate("document.querySelector('[data-edge-agents][role$=dialog]') !== null"), "axe looks there"
        assert visitor.barriers() == [], name
        # All of it is on the screen, or can be scrolled to.
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        page.keyboard.press("Escape")
        expect(dialog(page)).to_have_count(0)
        # Whoever works with the keyboard goes on where he was.
        page.wait_for_function("document.activeElement !== document.body")
    assert visitor.faults == []


def test_an_agent_that_is_away_says_what_it_left(fleet: Fleet, visit: Visit) -> None:
    away = {
        "since": "2026-11-24T10:00:00Z",
        "lease_until": "2026-11-24T10:30:00Z",
        "running": 3,
        "results_waiting": 1,
    }
    visitor = visit()
    visitor.hear("ship-anna", "away", away)
    words = "disconnected since 2026-11-24 10:00:00, lease until 2026-11-24 10:30:00, 3 tasks running, 1 result waiting"
    page = visitor.go("agents", heading="Agents")
    expect(page.locator("[data-agent='ship-anna']")).to_contain_text(words)
    assert visitor.barriers() == []
    page = visitor.go("agents/ship-anna", heading="ship-anna")
    expect(page.get_by_role("region", name="State", exact=True)).to_contain_text(words)
    visitor.picture("agent-away")
