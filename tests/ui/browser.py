"""A headless Chromium that is logged in to Airflow, looks at our pages and takes pictures of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Literal

import httpx
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, Route, expect

from harness.site import AirflowSite

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SECONDS = 30.0
"""How long a page may take to show something, on a machine that does much else."""

SIZES = {"desktop": (1360, 900), "phone": (390, 844), "tall": (1360, 1560)}

Scheme = Literal["light", "dark"]

AXE = Path(__file__).parents[2] / "server" / "ui" / "node_modules" / "axe-core" / "axe.min.js"

expect.set_options(timeout=SECONDS * 1000)


def find_browser() -> str | None:
    """Return the program, as ``EDGE_TEST_BROWSER`` or the PATH name it."""
    return os.environ.get("EDGE_TEST_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)


def launch(playwright: Playwright, program: str) -> Browser:
    """Start it, quietly: it must not look for updates or anything else outside."""
    return playwright.chromium.launch(
        executable_path=program,
        headless=True,
        args=[
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ],
    )


def token(site: AirflowSite, user: str, password: str) -> str:
    """Log in and return the token that Airflow's UI keeps in a cookie."""
    answer = httpx.post(f"{site.url}/auth/token", json={"username": user, "password": password}, timeout=60)
    answer.raise_for_status()
    return str(answer.json()["access_token"])


class Visitor:
    """Somebody who looks at the pages.

    :param pictures: where to put screenshots.
    """

    def __init__(
        self, browser: Browser, site: AirflowSite, jwt: str, pictures: Path, *, size: str = "desktop", scheme: Scheme
    ) -> None:
        width, height = SIZES[size]
        self.site = site
        self.label = scheme if size == "desktop" else f"{size}-{scheme}"
        self._pictures = pictures
        self.context: BrowserContext = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            base_url=site.url,
            locale="en-GB",
            timezone_id="UTC",
            has_touch=size == "phone",
        )
        self.context.set_default_timeout(SECONDS * 1000)
        self.context.add_cookies([{"name": "_token", "value": jwt, "url": site.url}])
        # Airflow's UI goes by this, not by what the browser prefers.
        self.context.add_init_script(f"localStorage.setItem('theme', '{scheme}')")
        self.faults: list[str] = []
        self.page: Page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda message: self._note(message.type, message.text))

    def _note(self, kind: str, text: str) -> None:
        if kind == "error":
            self.faults.append(text)

    def hear(self, name: str, key: str, value: object) -> None:
        """Let the page hear something else about one agent than the admin API says, which is tested by itself."""

        def answer(route: Route) -> None:
            response = route.fetch()
            body = response.json()
            for agent in body.get("items", [body]):
                if agent["name"] == name:
                    agent[key] = value
            route.fulfill(response=response, json=body)

        self.page.route("**/v1/admin/agents?*", answer)
        self.page.route(f"**/v1/admin/agents/{name}", answer)

    def go(self, path: str = "", *, heading: str | None = None) -> Page:
        """Open one of our pages and wait for its heading."""
        self.page.goto(f"/plugin/edge-agents{'/' if path else ''}{path}")
        if heading is not None:
            expect(self.page.get_by_role("heading", name=heading, exact=True)).to_be_visible()
        return self.page

    def picture(self, name: str, *, blurred: str | None = None) -> Path:
        """Take a screenshot of what is to be seen.

        :param blurred: CSS selector of what nobody shall read.
        """
        self._pictures.mkdir(parents=True, exist_ok=True)
        path = self._pictures / f"{name}-{self.label}.png"
        style = None if blurred is None else f"{blurred} {{ filter: blur(6px) }}"
        self.page.screenshot(path=path, animations="disabled", style=style)
        return path

    def barriers(self) -> list[str]:
        """Return axe's serious and critical findings in our part of the page, one line each."""
        self.page.evaluate(AXE.read_text())
        found: dict[str, Any] = self.page.evaluate(
            "axe.run({include: [['[data-edge-agents]']]}, {resultTypes: ['violations']})"
        )
        return [
            f"{fault['impact']}: {fault['id']}: {node['target']}: {node.get('failureSummary', '')}"
            for fault in found["violations"]
            if fault["impact"] in {"serious", "critical"}
            for node in fault["nodes"]
        ]

    def close(self) -> None:
        """Close page and context."""
        self.context.close()
