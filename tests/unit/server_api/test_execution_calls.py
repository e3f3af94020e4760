"""Which calls of a job the server passes on to the Execution API, and with which token."""

from __future__ import annotations

import uuid

import pytest

from airflow_edge_server.domain.execution import Denied, judge

OWN = "0199c2a4-7b1e-7c6a-8a52-6f0d6a1b2c3d"
OTHER = str(uuid.uuid4())


def ask(method: str, path: str, kind: str = "task") -> str:
    call = judge(method, path.encode(), kind=kind, subject=OWN)
    assert call.raw_path == b"/" + path.encode()
    return call.scope


@pytest.mark.parametrize(
    "path",
    [
        "connections/my%2Fdb",
        "variables/a/b",
        "variables/keys",
        "xcoms/dag/run%3A1/task/return_value/item/0",
        "xcoms/dag/manual__2026-01-01T00%3A00%3A00%2B00%3A00/task/key/slice",
        "assets/by-name",
        "asset-events/by-asset",
        "dag-runs/other_dag/run",
        "dags/some",
        f"hitlDetails/{OWN}",
        f"store/ti/{OWN}/key%2Fwith%2Fslashes",
        f"store/ti/{OWN}",
        "store/asset/by-name/value",
        f"task-instances/{OWN}/state",
        f"task-instances/{OWN.replace('-', '').upper()}/heartbeat",
        "task-instances/count",
        "task-instances/previous/dag/task",
        f"task-reschedules/{OWN}/start_date",
    ],
)
def test_what_the_sdk_asks_is_passed_on_with_an_execution_token(path: str) -> None:
    assert ask("GET", path) == "execution"


def test_only_the_start_gets_a_workload_token() -> None:
    assert ask("PATCH", f"task-instances/{OWN}/run") == "workload"
    assert ask("PATCH", f"task-instances/{OWN}/run/more") == "execution"
    assert ask("GET", "connections/x", kind="callback") == "execution"
    assert ask("PATCH", f"connection-tests/{OWN}", kind="connection_test") == "workload"


@pytest.mark.parametrize(
    "path",
    [
        f"task-instances/{OTHER}/run",
        f"task-instances/{OTHER.upper()}/state",
        f"task-instances/{OTHER.replace('-', '')}/state",
        f"task-instances/%7B{OTHER}%7D/state",
        f"task%2Dinstances/{OTHER}/state",
        f"task-instances%2F{OTHER}%2Fstate",
        f"task-reschedules/{OTHER}/start_date",
        f"hitlDetails/{OTHER}",
        f"store/ti/{OTHER}/key",
        f"connection-tests/{OWN}",
        "health",
        "docs",
        "openapi.json",
        "",
        "/variables/x",
    ],
)
def test_others_and_what_no_job_needs_are_forbidden(path: str) -> None:
    with pytest.raises(Denied) as denied:
        ask("GET", path)
    assert denied.value.status == 403


@pytest.mark.parametrize(
    "path", ["variables/../connections/x", "variables/%2e%2e/x", "variables/a%00b", "variables/%5cx", "variables/%ff"]
)
def test_paths_that_could_mean_something_else_are_refused(path: str) -> None:
    with pytest.raises(Denied) as denied:
        ask("GET", path)
    assert denied.value.status == 400


def test_a_connection_test_asks_for_itself_only() -> None:
    for path in (f"connection-tests/{OTHER}", "variables/x", f"task-instances/{OWN}/run"):
        with pytest.raises(Denied) as denied:
            ask("GET", path, kind="connection_test")
        assert denied.value.status == 403


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "OPTIONS", "get"])
def test_other_methods_are_refused(method: str) -> None:
    with pytest.raises(Denied) as denied:
        ask(method, "variables/x")
    assert denied.value.status == 405


def test_an_endless_path_is_refused() -> None:
    with pytest.raises(Denied) as denied:
        ask("GET", "variables/" + "x" * 9_000)
    assert denied.value.status == 414
