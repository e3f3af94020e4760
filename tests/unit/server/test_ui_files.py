"""The files of our pages: what Airflow's UI is told of them, and how they are served."""

from __future__ import annotations

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from airflow_edge_server import compat, mounting, ui


@pytest.fixture
def client() -> httpx.AsyncClient:
    app = Starlette(routes=[Mount(ui.PREFIX, ui.StaticFiles())])
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://airflow")


async def test_what_the_ui_is_told_is_there_and_may_be_kept(client: httpx.AsyncClient) -> None:
    entry = ui.react_app()
    for key, kind in (
        ("bundle_url", "text/javascript"),
        ("icon", "image/svg+xml"),
        ("icon_dark_mode", "image/svg+xml"),
    ):
        assert not entry[key].startswith("/"), "relative, for Airflow may live below a path"
        answer = await client.get(f"/{entry[key]}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(kind)
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_another_version_is_not_kept(client: httpx.AsyncClient) -> None:
    address = f"{ui.PREFIX}/{ui.BUNDLE}"
    for query in ("", "?v=0123456789abcdef"):
        answer = await client.get(address + query)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-cache"
    again = await client.get(address, headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304
    assert again.content == b""


@pytest.mark.parametrize("path", ["/", "/nothing.js", "/../__init__.py", "/%2e%2e/__init__.py", "/x/edge-agents.js"])
async def test_nothing_else_is_served(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(ui.PREFIX + path)).status_code == 404


async def test_files_are_only_read(client: httpx.AsyncClient) -> None:
    assert (await client.post(f"{ui.PREFIX}/{ui.BUNDLE}")).status_code == 405


def test_pages_and_api_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mounting.build_pages() == []
    monkeypatch.setenv("AIRFLOW__EDGE_AGENT__API_ENABLED", "True")
    assert [page["url_route"] for page in mounting.build_pages()] == [ui.ROUTE]
    monkeypatch.setenv("AIRFLOW__EDGE_AGENT__LEASE_SECONDS", "soon")
    assert mounting.build_pages() == []


@pytest.mark.parametrize("base", ["https://airflow.example.com", "https://example.com/air/flow/"])
@pytest.mark.parametrize("version", ["3.2.2", "3.3.2", "3.10.0rc1"])
def test_the_bundle_is_found_below_a_path(monkeypatch: pytest.MonkeyPatch, base: str, version: str) -> None:
    monkeypatch.setenv("AIRFLOW__EDGE_AGENT__API_ENABLED", "True")
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", base)
    monkeypatch.setattr(compat, "airflow_version", lambda: version)
    (page,) = mounting.build_pages()
    if version == "3.2.2":
        # What the browser imports as it is.
        below = "/air/flow" if base.endswith("flow/") else ""
        assert page["bundle_url"].startswith(f"{below}{ui.PREFIX}/{ui.BUNDLE}?v=")
    else:
        assert page["bundle_url"].startswith(f"{ui.PREFIX.lstrip('/')}/{ui.BUNDLE}?v=")
