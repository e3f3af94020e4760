"""The pages but for the one with all agents."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from ui.conftest import OTHER_SDK, Busy, Fleet, Visit

pytestmark = pytest.mark.integration


def test_the_overview_says_what_needs_a_look(busy: Busy, visit: Visit) -> None:
    page = visit().go("", heading="Overview")
    expect(page.get_by_text("Jobs wait in a queue that no agent serves: nowhere")).to_be_visible()
    expect(page.get_by_role("region", name="What needs a look")).to_contain_text("set runner.python to the Python")
    expect(page.get_by_role("region", name="States")).to_contain_text("maintenance mode")
    page.get_by_role("region", name="What needs a look").get_by_role("link", name="lab-7").click()
    expect(page.get_by_role("heading", name="lab-7", exact=True)).to_be_visible()


def test_an_agent_shows_its_jobs_and_leads_to_their_task_instances(busy: Busy, visit: Visit) -> None:
    page = visit().go("agents/press-01", heading="press-01")
    jobs = page.get_by_role("region", name="Running and recent jobs")
    rows = jobs.get_by_role("row").filter(has_text=busy.run_id)
    ended = rows.filter(has_text="shown.counts")
    expect(ended).to_contain_text("finished")
    expect(ended).to_contain_text(re.compile(r"\d\.\d\d s"))
    expect(ended).to_contain_text("MiB")
    expect(rows.filter(has_text="shown.waits")).to_contain_text("running")
    ended.get_by_role("link", name="shown.counts").click()
    page.wait_for_url(f"**/dags/shown/runs/{busy.run_id.replace('+', '%2B').replace(':', '%3A')}/tasks/counts**")
    expect(page.get_by_text("counts").first).to_be_visible()


def test_an_agent_shows_state_and_software(fleet: Fleet, visit: Visit) -> None:
    page = visit().go("agents/press-02", heading="press-02")
    expect(page.get_by_role("region", name="State", exact=True)).to_contain_text("new disk")
    expect(page.get_by_role("region", name="Host")).to_contain_text("Up for")
    page = visit().go("agents/mill-3", heading="mill-3")
    expect(page.get_by_role("region", name="Software")).to_contain_text(OTHER_SDK)
    expect(page.get_by_text("another minor version")).to_be_visible()


def test_an_agent_shows_figures_and_events(fleet: Fleet, visit: Visit) -> None:
    page = visit().go("agents/press-02", heading="press-02")
    # One figure a minute is kept.
    expect(page.get_by_role("img", name=re.compile(r"CPU: now \d"))).to_be_visible(timeout=90_000)
    expect(page.get_by_role("img", name=re.compile(r"Memory: now [\d.]+ GiB"))).to_be_visible()
    events = page.get_by_role("region", name="Events")
    expect(events.get_by_role("row").filter(has_text="maintenance").first).to_contain_text("new disk")
    expect(events.get_by_role("row").filter(has_text="connected").first).to_be_visible()


def test_an_agent_that_is_not_there(visit: Visit) -> None:
    page = visit().go("agents/nobody")
    expect(page.get_by_text("There is no agent nobody")).to_be_visible()
    page.get_by_role("link", name="Show the agents").click()
    expect(page.get_by_role("heading", name="Agents", exact=True)).to_be_visible()


def test_a_queue_without_agent_is_a_loud_warning(busy: Busy, visit: Visit) -> None:
    page = visit().go("queues", heading="Queues")
    expect(page.get_by_text("Queue nowhere: jobs wait, and no agent serves this queue")).to_be_visible()
    expect(page.locator("[data-queue=nowhere]").get_by_role("cell").nth(1)).to_have_text("1")
    expect(page.locator("[data-queue=plant]").get_by_role("cell").nth(2)).to_have_text("1")
    page.get_by_role("link", name="Show what waits").click()
    expect(page.get_by_role("row").filter(has_text="lost.stuck")).to_contain_text("no agent serves queue nowhere")


def test_jobs_are_filtered(busy: Busy, visit: Visit) -> None:
    page = visit().go("jobs", heading="Jobs")
    expect(page.locator("[data-job]").filter(has_text=busy.run_id)).to_have_count(2)
    page.get_by_role("combobox", name="State").select_option("running")
    expect(page.locator("[data-job]")).to_have_count(1)
    expect(page.locator("[data-job]")).to_contain_text("shown.waits")
    page.get_by_role("combobox", name="Agent").select_option("press-02")
    expect(page.get_by_text("There are no such jobs")).to_be_visible()
