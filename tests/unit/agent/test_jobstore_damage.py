"""The job store and files that are not as they should be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_edge_agent.adapters.jobstore import DirectoryJobStore
from airflow_edge_agent.core.agent import AgentCore
from airflow_edge_agent.core.events import JobEnded, JobFound, LinkOpened
from airflow_edge_agent.core.policy import Limits
from airflow_edge_agent.ports import StoreError
from airflow_edge_agent.protocol.frames import Usage
from airflow_edge_agent.protocol.jobs import Outcome
from fakes.frames import make_offer, make_welcome, new_id


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """A folder that is both the daemon's and the runner's."""
    folder = tmp_path / "jobs"
    folder.mkdir()
    return folder


@pytest.fixture
def store(tmp_path: Path) -> DirectoryJobStore:
    return DirectoryJobStore(tmp_path, tmp_path.parent)


def add(store: DirectoryJobStore) -> str:
    offer = make_offer()
    store.add(offer, "boot")
    return offer.job_id


def test_neither_token_nor_workload_are_written_down(store: DirectoryJobStore, tmp_path: Path) -> None:
    offer = make_offer(token="secret-token", workload={"key": "secret-load"})
    store.add(offer, "boot")
    (path,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert "secret" not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff\xff", b"\x00" * 4096, b'{"job_id": "../x"}'])
def test_a_damaged_job_is_cleared_away_and_the_others_stay(
    store: DirectoryJobStore, tmp_path: Path, content: bytes | None
) -> None:
    damaged, good = add(store), add(store)
    if content is None:
        (tmp_path / damaged / "job.json").unlink()
    else:
        (tmp_path / damaged / "job.json").write_bytes(content)
    assert [job.job_id for job in store.load()] == [good]
    assert not (tmp_path / damaged).exists()


def test_a_job_in_another_jobs_directory(store: DirectoryJobStore, tmp_path: Path) -> None:
    job_id = add(store)
    (tmp_path / job_id).rename(tmp_path / new_id())
    assert store.load() == []


def test_strangers_in_the_directory(store: DirectoryJobStore, tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "note").write_text("hello")
    (tmp_path / "link").symlink_to("/etc")
    job_id = add(store)
    assert [job.job_id for job in store.load()] == [job_id]
    assert Path("/etc/passwd").exists()


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"outcome": "fine"}', b'{"outcome": "finished", '])
def test_a_damaged_result_is_a_crash(store: DirectoryJobStore, tmp_path: Path, content: bytes) -> None:
    job_id = add(store)
    (tmp_path / job_id / "result.json").write_bytes(content)
    ended = store.ended(job_id)
    assert ended is not None
    assert ended.outcome is Outcome.CRASHED


@pytest.mark.parametrize(
    "values",
    [
        {"exit_code": 2**40},
        {"cpu_seconds": float("nan")},
        {"cpu_seconds": float("inf")},
        {"wall_seconds": -1.0},
        {"peak_memory_bytes": 2**70},
        {"peak_memory_bytes": -5},
        {"detail": "d" * 100_000},
        {"cpu_seconds": 1e300, "invented": [1]},
    ],
)
def test_a_result_with_absurd_figures_can_still_be_reported(
    store: DirectoryJobStore, tmp_path: Path, values: dict[str, Any]
) -> None:
    job_id = add(store)
    (tmp_path / job_id / "result.json").write_text(json.dumps({"outcome": "failed"} | values))
    core = AgentCore(Limits(1, 5, 0))
    for job in store.load():
        core.handle(JobFound(job.job_id, job.fence, job.slots, job.label, None, job.ended), 0)
    assert core.handle(LinkOpened(make_welcome()), 0)
    ended = store.ended(job_id)
    assert ended is not None
    assert ended.outcome is Outcome.FAILED


def test_an_end_is_recorded_where_the_runner_could_not(store: DirectoryJobStore) -> None:
    job_id = add(store)
    store.record_end(JobEnded(job_id, Outcome.LOST, None, "the host rebooted"))
    assert store.ended(job_id) == JobEnded(job_id, Outcome.LOST, None, "the host rebooted", 0, Usage())
    store.record_end(JobEnded(new_id(), Outcome.LOST))


def test_a_log_that_is_a_link_is_not_followed(store: DirectoryJobStore, tmp_path: Path) -> None:
    job_id = add(store)
    (tmp_path / job_id / "task.log").symlink_to("/etc/passwd")
    assert store.read_log(job_id, 0, 100) == b""


def test_a_log_that_is_a_directory(store: DirectoryJobStore, tmp_path: Path) -> None:
    job_id = add(store)
    (tmp_path / job_id / "task.log").mkdir()
    assert store.read_log(job_id, 0, 100) == b""


def test_no_place_for_a_job(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        add(DirectoryJobStore(tmp_path / "gone", tmp_path))
    assert "\n" not in str(caught.value)


def test_a_full_disk(tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from airflow_edge_agent.adapters.jobstore import DirectoryJobStore\n"
        "from airflow_edge_agent.core.events import JobEnded\n"
        "from airflow_edge_agent.ports import StoreError\n"
        "from airflow_edge_agent.protocol.jobs import Outcome\n"
        "from fakes.frames import make_offer\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "store = DirectoryJobStore(Path(sys.argv[1]), Path(sys.argv[1])); offer = make_offer()\n"
        "try: store.add(offer, 'boot')\n"
        "except StoreError as error: print(error)\n"
        "store.record_end(JobEnded(offer.job_id, Outcome.LOST))\n"
        "print(store.load())\n"
    )
    tests = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True, env={"PYTHONPATH": tests}
    )
    said, left = done.stdout.splitlines()
    assert "File too large" in said
    assert left == "[]"
    assert list(tmp_path.iterdir()) == []
