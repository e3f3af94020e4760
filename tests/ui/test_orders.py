"""What administrators do in the pages, and what those who may only look cannot."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from ui.conftest import Fleet, Visit

pytestmark = pytest.mark.integration


def give(page: Page, order: str, *, menu: str = "Actions") -> None:
    """Choose an order; its dialog is open then."""
    page.get_by_role("button", name=menu).click()
    page.get_by_role("menuitem", name=re.compile(f"^{order}")).click()
    expect(page.get_by_role("dialog").or_(page.get_by_role("alertdialog"))).to_be_visible()


def confirm(page: Page, order: str) -> None:
    dialog = page.get_by_role("dialog").or_(page.get_by_role("alertdialog"))
    dialog.get_by_role("button", name=order, exact=True).click()
    expect(dialog).to_have_count(0)


def test_maintenance_with_comment_and_duration(visit: Visit) -> None:
    visitor = visit()
    page = visitor.go("agents/press-01", heading="press-01")
    give(page, "Start maintenance")
    page.get_by_label("Comment").fill("a new belt")
    page.get_by_label("How long").select_option("1 hour")
    expect(page.get_by_text("What this will do")).to_be_visible()
    visitor.picture("order")
    assert visitor.barriers() == []
    confirm(page, "Start maintenance")
    state = page.get_by_role("region", name="State", exact=True)
    expect(state).to_contain_text(re.compile("a new belt, by admin, since .*, until "))
    expect(page.get_by_text(re.compile(r"^maintenance (mode|pending)$"))).to_be_visible()
    give(page, "End maintenance")
    confirm(page, "End maintenance")
    expect(page.get_by_text(re.compile(r"^(idle|running)$"))).to_be_visible()
    assert visitor.faults == []


def test_several_agents_at_once(visit: Visit) -> None:
    page = visit().go("agents", heading="Agents")
    for name in ("mill-3", "press-02"):
        page.get_by_role("checkbox", name=f"Choose {name}").check()
    give(page, "Drain", menu="Act on 2 agents")
    expect(page.get_by_role("dialog")).to_contain_text("mill-3:")
    confirm(page, "Drain")
    expect(page.locator("[data-agent=mill-3]")).to_contain_text("drained")
    expect(page.locator("[data-agent=press-02]")).to_contain_text("drained")
    expect(page.locator("[data-agent=press-01]")).not_to_contain_text("drained")
    give(page, "Resume", menu="Act on 2 agents")
    confirm(page, "Resume")
    expect(page.locator("[data-agent=mill-3]")).not_to_contain_text("drained")


def test_slots_and_queues(visit: Visit) -> None:
    page = visit().go("agents/mill-3", heading="mill-3")
    work = page.get_by_role("region", name="Work")
    give(page, "Change slots")
    page.get_by_label("Slots", exact=True).fill("2")
    confirm(page, "Change slots")
    expect(work).to_contain_text("0 of 2")
    give(page, "Change queues")
    page.get_by_role("dialog").get_by_role("button", name="Change queues", exact=True).click()
    expect(page.get_by_text("Name a queue to add or to remove.")).to_be_visible()
    page.get_by_label("Add", exact=True).fill("flour, bran")
    confirm(page, "Change queues")
    expect(work).to_contain_text("bran")
    expect(work).to_contain_text("with queue flour")
    give(page, "Change slots")
    confirm(page, "Change slots")
    expect(work).to_contain_text("0 of 4")


def test_only_an_agent_that_is_away_can_be_removed(fleet: Fleet, visit: Visit) -> None:
    fleet.start("shop-9", ["shop"])
    fleet.agents["shop-9"].wait_for_log("connected")
    fleet.agents["shop-9"].stop()
    page = visit().go("agents/press-01", heading="press-01")
    page.get_by_role("button", name="Actions").click()
    expect(page.get_by_role("menuitem", name="Remove")).to_be_disabled()
    expect(page.get_by_text("Only an agent that is not connected can be removed.")).to_be_visible()
    page.goto("/plugin/edge-agents/agents/shop-9")
    give(page, "Remove")
    confirm(page, "Remove")
    expect(page.get_by_role("heading", name="Agents", exact=True)).to_be_visible()
    expect(page.locator("[data-agent=press-01]")).to_be_visible()
    expect(page.locator("[data-agent=shop-9]")).to_have_count(0)


def test_a_running_job_is_cancelled(fleet: Fleet, visit: Visit) -> None:
    run_id = fleet.site.api.trigger_dag("shown", conf={"go": str(fleet.folder / "never")})
    fleet.site.api.wait_for_state("shown", run_id, "waits", {"running"})
    page = visit().go("jobs?state=running", heading="Jobs")
    job = page.locator("[data-job]").filter(has_text=run_id)
    job.get_by_role("button", name="Cancel waits").click()
    page.get_by_label("Reason").fill("it never ends")
    confirm(page, "Cancel the job")
    page.get_by_role("combobox", name="State").select_option("finished")
    expect(page.locator("[data-job]").filter(has_text=run_id).filter(has_text="shown.waits")).to_contain_text("killed")
    fleet.site.api.wait_for_state("shown", run_id, "waits", {"failed"})


def test_an_agent_is_added(fleet: Fleet, visit: Visit) -> None:
    visitor = visit()
    page = visitor.go("add", heading="Add an agent")
    page.get_by_role("button", name="Make a join token").click()
    expect(page.get_by_text("Up to 63 letters")).to_be_visible()
    page.get_by_label("Name").fill("shop-1")
    page.get_by_label("Queues").fill("shop")
    page.get_by_label("Platform").select_option("Debian, Ubuntu and the like")
    page.get_by_role("button", name="Make a join token").click()
    expect(page.get_by_text("apt-get install")).to_be_visible()
    expect(page.get_by_text("Waiting for shop-1 to connect")).to_be_visible()
    expect(page.locator("[data-token=shop-1]")).to_contain_text("shop")
    assert page.evaluate("document.activeElement.textContent").startswith("Let shop-1 join"), "the focus has followed"
    visitor.picture("added", blurred="code:has(+ [aria-label='Copy the token'])")
    assert visitor.barriers() == []
    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy the token").click()
    expect(page.get_by_role("button", name="the token: copied")).to_be_visible()

    fleet.start("shop-1", ["shop"], secret=page.evaluate("navigator.clipboard.readText()"))
    expect(page.get_by_text("shop-1 is here")).to_be_visible(timeout=60_000)
    expect(page.get_by_text("and serves shop.")).to_be_visible()
    # Good for one agent, and used.
    expect(page.locator("[data-token=shop-1]")).to_have_count(0)

    page.get_by_role("button", name="Add another agent").click()
    page.get_by_label("Name").fill("spare-*")
    page.get_by_role("button", name="Make a join token").click()
    page.get_by_role("button", name="Revoke the token for spare-*").click()
    expect(page.get_by_text("The token for spare-* is revoked.")).to_be_visible()
    expect(page.locator("[data-token]")).to_have_count(0)

    page.goto("/plugin/edge-agents/agents/shop-1")
    give(page, "Revoke")
    confirm(page, "Revoke")
    process = fleet.agents["shop-1"].process
    assert process is not None
    assert process.wait(60) == 77
    assert visitor.faults == []


def test_the_keyboard_suffices(visit: Visit) -> None:
    page = visit().go("agents/press-02", heading="press-02")
    page.get_by_role("button", name="Actions").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("menuitem", name="End maintenance")).to_be_visible()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    assert page.evaluate("document.activeElement.closest('[role=dialog]') !== null"), "the focus is in the dialog"
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(page.get_by_role("button", name="Actions")).to_be_focused()


def test_a_token_is_copied_where_the_browser_has_no_clipboard(visit: Visit) -> None:
    visitor = visit()
    # As on a page without TLS, which this one is spared for its address.
    visitor.context.add_init_script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page = visitor.go("add", heading="Add an agent")
    page.get_by_label("Name").fill("spare-7")
    page.get_by_role("button", name="Make a join token").click()
    page.get_by_role("button", name="Copy the token").click()
    expect(page.get_by_role("button", name="the token: copied")).to_be_visible()
    page.get_by_role("button", name="Add another agent").click()
    page.get_by_label("Name").click()
    page.keyboard.press("Control+V")
    expect(page.get_by_label("Name")).to_have_value(re.compile("^eaj_"))
    page.get_by_role("button", name="Revoke the token for spare-7").click()
    expect(page.locator("[data-token]")).to_have_count(0)
    assert visitor.faults == []


def test_who_may_only_look_can_change_nothing(visit: Visit) -> None:
    page = visit("viewer").go("agents", heading="Agents")
    expect(page.locator("[data-agent=press-01]")).to_be_visible()
    expect(page.get_by_text("viewer may look at the edge agents, but not change them")).to_be_visible()
    expect(page.get_by_role("button", name="Choose agents to act on")).to_be_disabled()
    expect(page.get_by_role("checkbox")).to_have_count(0)
    page.goto("/plugin/edge-agents/agents/press-01")
    expect(page.get_by_role("button", name="Actions")).to_be_disabled()
    page.goto("/plugin/edge-agents/add")
    expect(page.get_by_role("button", name="Make a join token")).to_be_disabled()
    expect(page.get_by_role("alert")).to_have_count(0)
    # The page only spares them the attempt; it is the server that refuses.
    status = page.evaluate(
        """async () => (await fetch(new URL("edge-agents/v1/admin/agents/bulk", document.baseURI), {
            method: "POST",
            headers: {"Content-Type": "application/json"},
            body: JSON.stringify({names: ["press-01"], action: "drain"}),
        })).status"""
    )
    assert status == 403
