"""The page with all agents."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from ui.conftest import OTHER_SDK, Fleet, Visit

pytestmark = pytest.mark.integration

ALL = ["lab-7", "mill-3", "press-01", "press-02", "ship-anna"]


def row(page: Page, name: str) -> Locator:
    return page.locator(f"[data-agent='{name}']")


def names(page: Page) -> list[str]:
    return [item.get_attribute("data-agent") or "" for item in page.locator("[data-agent]").all()]


def test_it_is_reached_from_airflows_own_navigation(visit: Visit) -> None:
    visitor = visit()
    page = visitor.page
    page.goto("/")
    page.get_by_role("link", name="Edge agents").click()
    page.get_by_role("navigation", name="Edge agents").get_by_role("link", name="Agents").click()
    expect(page.get_by_role("heading", name="Agents", exact=True)).to_be_visible()
    expect(row(page, "press-01")).to_be_visible()
    assert visitor.faults == []


def test_it_says_how_each_agent_is(fleet: Fleet, visit: Visit) -> None:
    page = visit().go("agents", heading="Agents")
    working = row(page, "press-01")
    expect(working).to_contain_text("default, plant")
    expect(working).to_contain_text("of 4")
    expect(working).to_contain_text(re.compile(r"just now|\d+ s ago"))
    expect(working.get_by_role("meter", name="CPU")).to_be_visible()
    expect(working.get_by_role("meter", name="Mem")).to_have_attribute("aria-valuetext", re.compile("GiB of .* GiB"))
    expect(row(page, "press-02")).to_contain_text("maintenance mode")
    expect(row(page, "press-02")).to_contain_text("new disk")
    expect(row(page, "ship-anna")).to_contain_text("offline")


def test_it_names_what_is_wrong_with_a_task_runtime(fleet: Fleet, visit: Visit) -> None:
    page = visit().go("agents", heading="Agents")
    broken = row(page, "lab-7")
    expect(broken).to_contain_text("no such program; set runner.python to the Python of the task runtime")
    expect(broken).to_contain_text("problem")
    expect(row(page, "mill-3")).to_contain_text(f"Task SDK {OTHER_SDK}")
    expect(row(page, "mill-3")).not_to_contain_text("problem")
    expect(row(page, "mill-3")).to_contain_text("another minor version")


def test_who_was_drained_on_the_host_has_no_problem(fleet: Fleet, visit: Visit) -> None:
    why = "drained by alice: takes no new jobs until it is resumed"
    visitor = visit()
    visitor.hear("press-01", "drained", why)
    page = visitor.go("agents", heading="Agents")
    drained = row(page, "press-01")
    expect(drained).to_contain_text(why)
    # It is written a second time, for phones.
    expect(drained.get_by_text("drained", exact=True).filter(visible=True)).to_have_count(1)
    expect(drained).not_to_contain_text("problem")
    assert visitor.barriers() == []
    page = visitor.go("agents/press-01", heading="press-01")
    expect(page.get_by_text("drained", exact=True)).to_be_visible()
    expect(page.get_by_text(why)).to_be_visible()


def test_it_is_searched_filtered_and_sorted(visit: Visit) -> None:
    page = visit().go("agents", heading="Agents")
    expect(page.locator("[data-agent]")).to_have_count(len(ALL))
    assert names(page) == ALL

    page.get_by_role("searchbox").fill("PRESS")
    expect(page.locator("[data-agent]")).to_have_count(2)
    page.get_by_role("combobox", name="State").select_option("maintenance mode")
    expect(page.locator("[data-agent]")).to_have_count(1)
    assert names(page) == ["press-02"]
    page.reload()
    expect(row(page, "press-02")).to_be_visible()
    expect(page.locator("[data-agent]")).to_have_count(1)

    page.get_by_role("searchbox").fill("nobody-*")
    expect(page.get_by_text("No agent fits")).to_be_visible()
    page.get_by_role("button", name="Show all agents").click()
    expect(page.locator("[data-agent]")).to_have_count(len(ALL))

    page.get_by_role("combobox", name="Queue").select_option("plant")
    expect(page.locator("[data-agent]")).to_have_count(2)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("[data-agent]")).to_have_count(len(ALL))

    page.get_by_role("button", name="Name").click()
    expect(page.get_by_role("columnheader", name="Name")).to_have_attribute("aria-sort", "descending")
    expect(page.locator("[data-agent]").first).to_have_attribute("data-agent", ALL[-1])


def test_a_change_is_seen_without_a_reload(fleet: Fleet, visit: Visit) -> None:
    page = visit().go("agents", heading="Agents")
    expect(row(page, "press-01")).to_contain_text("idle")
    page.evaluate("globalThis.notReloaded = true")
    fleet.site.cli("edge-agents", "maintenance", "on", "press-01", "--comment", "a quick look")
    expect(row(page, "press-01")).to_contain_text("a quick look")
    expect(row(page, "press-01")).to_contain_text("maintenance mode")
    fleet.site.cli("edge-agents", "maintenance", "off", "press-01")
    expect(row(page, "press-01")).to_contain_text("idle")
    assert page.evaluate("globalThis.notReloaded")


def test_a_server_that_is_away_is_said_and_waited_for(visit: Visit) -> None:
    page = visit().go("agents", heading="Agents")
    expect(row(page, "press-01")).to_be_visible()
    calls: list[str] = []

    def fail(route: Route) -> None:
        calls.append(route.request.url)
        route.abort()

    page.route("**/edge-agents/v1/admin/agents*", fail)
    expect(page.get_by_text("Not up to date: Airflow's API server cannot be reached.")).to_be_visible()
    expect(row(page, "press-01")).to_be_visible()
    page.unroute("**/edge-agents/v1/admin/agents*")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_text("Not up to date")).to_have_count(0)

    page.route("**/edge-agents/v1/admin/agents*", lambda route: route.fulfill(status=503, json={"detail": "no tables"}))
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("no tables")
    expect(page.get_by_text("airflow db migrate")).to_be_visible()
