"""The admin API in a real api-server: Airflow's own users, roles, cookies and tokens."""

from __future__ import annotations

import getpass
import json
import subprocess
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
    assert "the join token is not used up" in agent.enroll(token, "--dry-run")
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


def cli(site: AirflowSite, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``airflow edge-agents``, whatever its exit code."""
    return subprocess.run(
        [Path(sys.prefix) / "bin" / "airflow", "edge-agents", *arguments],
        env=site.keeper.environment(site.env() | env),
        cwd=site.root,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def elsewhere(site: AirflowSite, role: str, tmp_path: Path) -> dict[str, str]:
    """Return the environment of a host that knows nothing but the server's address and a token."""
    with signed_in(site, role) as client:
        token = client.headers["Authorization"].removeprefix("Bearer ")
    return {
        "AIRFLOW_EDGE_AGENTS_URL": site.url,
        "AIRFLOW_EDGE_AGENTS_TOKEN": token,
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{tmp_path}/none.db",
        "AIRFLOW_HOME": str(tmp_path),
    }


@pytest.mark.usefixtures("enrolled")
def test_the_command_line_does_the_same_beside_airflow_and_from_elsewhere(site: AirflowSite, tmp_path: Path) -> None:
    remote = elsewhere(site, "op", tmp_path)
    here, there = (cli(site, "list", "press-*", "--output", "json", **env) for env in ({}, remote))
    assert (here.returncode, there.returncode) == (0, 0), here.stderr + there.stderr
    assert json.loads(here.stdout) == json.loads(there.stdout)
    assert [agent["name"] for agent in json.loads(here.stdout)] == ["press-07"]

    order = ("maintenance", "on", "press-*", "--comment", "new disk", "--for", "2h")
    dry = cli(site, *order, "--dry-run", **remote)
    assert dry.returncode == 0, dry.stderr
    assert "press-07 would be done: is in maintenance" in dry.stderr
    assert site.query("SELECT state FROM edge_agent WHERE name = 'press-07'") == [("offline",)]
    done = cli(site, *order, **remote)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(cli(site, "list", "--state", "offline maintenance", "--output", "json").stdout)
    assert row["name"] == "press-07"
    assert row["maintenance"].endswith("by the-op: new disk")
    local = cli(site, "concurrency", "3", "press-07")
    assert local.returncode == 0, local.stderr
    shown = json.loads(cli(site, "show", "press-07", "--output", "json", **remote).stdout)
    assert shown[0]["overrides"]["slots"] == "3"  # as Airflow's own commands write it

    entries = site.query("SELECT event, owner, extra FROM log WHERE event LIKE 'edge_agents.%' ORDER BY id")
    told = [(event, owner, json.loads(extra)) for event, owner, extra in entries if "join" not in event]
    told = [entry for entry in told if entry[0] != "edge_agents.enroll"]
    assert [(event, owner, extra["agent"]) for event, owner, extra in told] == [
        ("edge_agents.maintenance_on", "the-op", "press-07"),
        ("edge_agents.set_concurrency", getpass.getuser(), "press-07"),
    ]
    assert told[0][2]["from"] == "127.0.0.1"
    assert told[1][2]["from"].startswith("command line on ")


def test_agents_are_let_in_and_shut_out_from_elsewhere(site: AirflowSite, tmp_path: Path) -> None:
    remote = elsewhere(site, "op", tmp_path)
    rows = ("--output", "json")
    made = cli(site, "enroll", "--name", "oven-*", "--queues", "a,b", "--platform", "rpm", *rows, **remote)
    (token,) = json.loads(made.stdout)
    assert token["commands"][:2] == [
        "sudo dnf install airflow-edge-agent airflow-edge-runtime",
        f"sudo edgectl enroll {site.url}",
    ]
    alone = cli(site, "enroll", "--name", "oven-1", "--server-url", "https://air.example/", **remote)
    assert alone.returncode == 0, alone.stderr
    assert "    sudo edgectl enroll https://air.example --name oven-1\n" in alone.stderr
    assert "apt-get" not in alone.stderr
    plain = alone.stdout.strip()
    listed = cli(site, "join-tokens", "list", "--name", "oven-*", "--usable", *rows, **remote)
    assert {row["names"] for row in json.loads(listed.stdout)} == {"oven-*", "oven-1"}
    assert plain.split("_", 2)[2] not in listed.stdout

    dry = cli(site, "join-tokens", "revoke", "--name", "oven-*", "--dry-run", **remote)
    assert dry.stderr.count("would be done: lets nobody in any more") == 2, dry.stderr
    done = cli(site, "join-tokens", "revoke", "--queue", "a", **remote)
    assert (done.returncode, done.stderr) == (0, f"Join token {token['id']} lets nobody in any more\n")
    # One that is not there keeps no other back; the secret of a whole token is not repeated.
    done = cli(site, "join-tokens", "revoke", "0" * 16, plain, *rows, **remote)
    assert done.returncode == 1
    assert [row["ok"] for row in json.loads(done.stdout)] == ["False", "True"]
    assert plain not in done.stdout + done.stderr
    assert json.loads(cli(site, "join-tokens", "list", "--name", "oven-*", "--usable", *rows).stdout) == []

    here = Path(sys.prefix)
    for name in ("kiln-1", "kiln-2"):
        join = cli(site, "enroll", "--name", name, "--queues", name, **remote).stdout.strip()
        root = tmp_path / name
        AgentProcess(
            root, keeper=site.keeper, environment=here, runtime=here, server_url=site.url, token=join, name=name
        ).enroll(join)
    revoked = "SELECT name FROM edge_agent WHERE name LIKE 'kiln-%' AND revoked_at IS NOT NULL"
    order = ("revoke", "kiln-*", "--state", "offline", "--jobs", "cancel")
    dry = cli(site, *order, "--dry-run", **remote)
    assert dry.stderr.count("would be done: is shut out: 1 credential revoked") == 2, dry.stderr
    assert site.query(revoked) == []
    (row,) = json.loads(cli(site, "revoke", "kiln-1", *rows, **remote).stdout)
    assert (row["name"], row["ok"]) == ("kiln-1", "True")
    assert site.query(revoked) == [("kiln-1",)]
    owners = site.query("SELECT DISTINCT owner FROM log WHERE event = 'edge_agents.revoke_agent'")
    assert owners == [("the-op",)]


@pytest.mark.usefixtures("enrolled")
@pytest.mark.parametrize(
    ("arguments", "role", "says"),
    [
        (("drain", "nobody"), None, "there is no agent called 'nobody'"),
        (("concurrency", "none", "press-07"), None, "slots: "),
        (("drain", "press-07"), "viewer", "may not change edge agents"),
        (("list", "--url", "http://airflow.example.com"), "viewer", "would send the token in the clear"),
        (("enroll", "--name", "a b"), "op", "'a b' is no name or pattern"),
        (("enroll", "--name", "x", "--uses", "0"), "op", "uses: "),
        (("join-tokens", "revoke"), None, "which join tokens?"),
        (("cancel",), None, "which jobs?"),
        (("cancel", "job-1"), "op", "there is no job job-1 that has not ended"),
        (("show", ".."), "op", "there is no agent called '..'"),
        (("show", "\udcff"), None, r"'\udcff' is no UTF-8"),
        (("drain", "\udcff"), "op", r"'\udcff' is no UTF-8"),
        (("serve", "press-07", "--add", "a,b"), None, "a queue's name has 1 to 256 characters"),
        (("list", "--url", "https://[::1"), "viewer", "is no URL of an api-server"),
        (("list", "--url", "https://airflow:port"), "viewer", "is no URL of an api-server"),
        (("cancel", "00000000-0000-0000-0000-000000000000"), "op", "that has not ended"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_an_exit_code(
    site: AirflowSite, tmp_path: Path, arguments: tuple[str, ...], role: str | None, says: str
) -> None:
    done = cli(site, *arguments, **({} if role is None else elsewhere(site, role, tmp_path)))
    assert done.returncode == 1, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
