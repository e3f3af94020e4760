"""The admin API in a real api-server: Airflow's own users, roles, cookies and tokens."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from airflow_edge_agent.adapters.credential import Prover, read_credential
from harness.agent import AgentProcess
from harness.processes import Keeper
from harness.site import AirflowSite

pytestmark = pytest.mark.integration

ROLES = ("viewer", "user", "op", "admin")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowSite]:
    users = ",".join(f"{'admin' if role == 'admin' else f'the-{role}'}:{role}" for role in ROLES)
    with (
        Keeper() as keeper,
        AirflowSite(
            tmp_path_factory.mktemp("site"),
            keeper=keeper,
            environment=Path(sys.prefix),
            bundles={},
            settings={"AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": users},
        ) as site,
    ):
        site.start(["api-server"])
        yield site


@pytest.fixture(scope="module")
def enrolled(site: AirflowSite, tmp_path_factory: pytest.TempPathFactory) -> AgentProcess:
    """An agent that was enrolled and is not started."""
    here = Path(sys.prefix)
    token = site.create_join_token("press-07")
    root = tmp_path_factory.mktemp("agent")
    agent = AgentProcess(
        root, keeper=site.keeper, environment=here, runtime=here, server_url=site.url, token=token, name="press-07"
    )
    agent.enroll(token)
    return agent


@contextmanager
def signed_in(site: AirflowSite, role: str, *, cookie: bool = False) -> Iterator[httpx.Client]:
    """Yield a client with a token of that role, in its header or in the cookie that a browser would have."""
    passwords = json.loads((site.home / "passwords.json").read_text())
    name = "admin" if role == "admin" else f"the-{role}"
    with httpx.Client(base_url=site.url, timeout=30, trust_env=False) as client:
        answer = client.post("/auth/token", json={"username": name, "password": passwords[name]})
        token = answer.raise_for_status().json()["access_token"]
        client.base_url = httpx.URL(f"{site.url}/edge-agents/v1/admin/")
        if cookie:
            client.cookies.set("_token", token)
        else:
            client.headers["Authorization"] = f"Bearer {token}"
        yield client


@pytest.mark.usefixtures("enrolled")
@pytest.mark.parametrize("cookie", [False, True])
@pytest.mark.parametrize("role", ROLES)
def test_each_role_may_look_and_some_may_change(site: AirflowSite, role: str, *, cookie: bool) -> None:
    with signed_in(site, role, cookie=cookie) as client:
        me = client.get("me").raise_for_status().json()
        assert (me["can_view"], me["can_change"]) == (True, role in {"op", "admin"})
        assert me["user"] == ("admin" if role == "admin" else f"the-{role}")
        assert [one["name"] for one in client.get("agents").raise_for_status().json()["items"]] == ["press-07"]


def test_nobody_gets_in_without_a_valid_token(site: AirflowSite, enrolled: AgentProcess) -> None:
    join_token = site.create_join_token("press-07")
    proof = proof_of(enrolled)
    with httpx.Client(base_url=f"{site.url}/edge-agents/v1/admin/", trust_env=False) as client:
        for headers in (
            {},
            {"Authorization": "Bearer x"},
            {"Authorization": f"Bearer {join_token}"},
            {"Authorization": proof},
        ):
            for path in ("me", "agents", "overview", "openapi.json"):
                assert client.get(path, headers=headers).status_code in {401, 403}, (path, headers)


def test_what_a_device_has_opens_nothing_of_airflows(site: AirflowSite, enrolled: AgentProcess) -> None:
    credential = enrolled.credential_file.read_text().strip()
    ti_id = "0198c0de-0000-7000-8000-000000000000"
    with httpx.Client(base_url=site.url, timeout=30, trust_env=False) as client:
        # It is what opens the agent API.
        ours = {"Authorization": proof_of(enrolled)}
        assert client.post("/edge-agents/v1/exchange", headers=ours, json={"frames": []}).status_code == 200
        for shown in (proof_of(enrolled), f"Bearer {credential}", f"Bearer {site.create_join_token('other')}"):
            headers = {"Authorization": shown}
            for method, path in (
                ("GET", "/api/v2/dags"),
                ("GET", "/api/v2/connections"),
                ("GET", "/execution/connections/x"),
                ("GET", "/execution/variables/x"),
                ("PATCH", f"/execution/task-instances/{ti_id}/run"),
            ):
                answer = client.request(method, path, headers=headers, json={} if method == "PATCH" else None)
                assert answer.status_code in {401, 403}, (path, answer.status_code, answer.text)
            answer = client.post("/auth/token", headers=headers, json={"username": "press-07", "password": credential})
            assert answer.status_code in {401, 403}


def proof_of(agent: AgentProcess) -> str:
    return Prover(read_credential(agent.credential_file), agent.credential_file).header()


def test_the_document_is_served_to_those_who_may_look(site: AirflowSite) -> None:
    with signed_in(site, "viewer") as client:
        document = client.get("openapi.json").raise_for_status().json()
    assert "/agents/{name}" in document["paths"]
    assert document["info"]["version"] == "1"
