"""Who may look and who may change with the auth manager of Flask AppBuilder: `make test-fab` installs it."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from harness.processes import Keeper
from harness.site import AirflowSite

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        find_spec("airflow.providers") is None or find_spec("airflow.providers.fab") is None,
        reason="apache-airflow-providers-fab is not installed: make test-fab",
    ),
]

OWN_ROLES = {"Looks": ["can_read:Jobs"], "Edits": ["can_edit:Pools"], "Both": ["can_read:Jobs", "can_edit:Pools"]}
"""Roles made for this, with rights and nothing else."""

RIGHTS = {
    "Public": (False, False),
    "Viewer": (True, False),
    "User": (True, False),
    "Op": (True, True),
    "Admin": (True, True),
    "Looks": (True, False),
    "Edits": (False, False),
    "Both": (True, True),
}
"""By role: whether it may look, and whether it may change."""

PASSWORD = secrets.token_urlsafe(12)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowSite]:
    manager = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
    with (
        Keeper() as keeper,
        AirflowSite(
            tmp_path_factory.mktemp("site"),
            keeper=keeper,
            environment=Path(sys.prefix),
            bundles={},
            settings={"AIRFLOW__CORE__AUTH_MANAGER": manager},
        ) as site,
    ):
        site.start(["api-server"])
        for role, rights in OWN_ROLES.items():
            site.cli("roles", "create", role)
            for right in rights:
                action, resource = right.split(":")
                site.cli("roles", "add-perms", role, "--action", action, "--resource", resource)
        for role in RIGHTS:
            person = ["--firstname", "a", "--lastname", "b", "--email", f"{role}@example.com", "--password", PASSWORD]
            site.cli("users", "create", "--username", f"the-{role}", "--role", role, *person)
        site.create_join_token("press-07")
        yield site


@pytest.mark.parametrize("cookie", [False, True])
@pytest.mark.parametrize("role", RIGHTS)
def test_each_role_of_fab_may_look_or_change_as_documented(site: AirflowSite, role: str, *, cookie: bool) -> None:
    may_look, may_change = RIGHTS[role]
    with httpx.Client(base_url=site.url, timeout=60, trust_env=False) as client:
        answer = client.post("/auth/token", json={"username": f"the-{role}", "password": PASSWORD})
        token = answer.raise_for_status().json()["access_token"]
        client.base_url = httpx.URL(f"{site.url}/edge-agents/v1/admin/")
        if cookie:
            client.cookies.set("_token", token)
        else:
            client.headers["Authorization"] = f"Bearer {token}"
        me = client.get("me").raise_for_status().json()
        assert (me["user"], me["can_view"], me["can_change"]) == (f"the-{role}", may_look, may_change)
        for path in ("agents", "overview", "jobs", "queues"):
            assert client.get(path).status_code == (200 if may_look else 403), path
        assert client.get("join-tokens").status_code == (200 if may_change else 403)
        order = {"name_pattern": f"by-{role}", "queues": ["default"], "valid_seconds": 60}
        made = client.post("join-tokens", json=order)
        assert made.status_code in ({200, 201} if may_change else {403}), made.text
        # 404: it may, but there is no such agent.
        revoked = client.post("agents/nobody/revoke", json={"running_jobs": "finish"})
        assert revoked.status_code == (404 if may_change else 403), revoked.text
    told = site.query("SELECT owner, extra FROM log WHERE event = 'edge_agents.create_join_token'")
    mine = [owner for owner, extra in told if f'"by-{role}"' in extra]
    assert set(mine) == ({f"the-{role}"} if may_change else set())
