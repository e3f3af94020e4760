from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_edge_agent.runner import cgroups
from airflow_edge_agent.runner.cgroups import Cgroups, JobCgroup, Missing
from airflow_edge_agent.runner.limits import GroupUsage, Limits

JOB = "11111111-2222-3333-4444-555555555555"
SCENES = Path(__file__).with_name("cgroup_scenes.py")


class Tree:
    """What the kernel shows, as plain files."""

    def __init__(self, root: Path, *, own: str = "/runner.service", controllers: str = "cpu io memory pids") -> None:
        self.mount = root / "sys fs"
        self.group = self.mount / own.lstrip("/")
        self.group.mkdir(parents=True)
        for name in ("cgroup.type", "cgroup.procs", "cgroup.subtree_control"):
            (self.group / name).touch()
        (self.group / "cgroup.controllers").write_text(controllers)
        (self.group / "supervisor").mkdir()
        (self.group / "supervisor" / "cgroup.procs").touch()
        self.mounts = root / "mountinfo"
        point = str(self.mount).replace(" ", r"\040")
        self.mounts.write_text(
            f"20 1 0:20 / /proc rw - proc proc rw\n30 1 0:30 / {point} rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"
        )
        self.membership = root / "cgroup"
        self.membership.write_text(f"1:name=systemd:/x\n0::{own}\n")

    def detect(self) -> Cgroups | Missing:
        return cgroups.detect(mounts=self.mounts, membership=self.membership)

    def found(self) -> Cgroups:
        found = self.detect()
        assert isinstance(found, Cgroups), found
        return found

    def missing(self) -> str:
        found = self.detect()
        assert isinstance(found, Missing), found
        return found.reason


def fill(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)


@pytest.fixture
def limit_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new group has its files at once, as the kernel makes them."""
    mkdir = Path.mkdir

    def make(self: Path, *args: Any, **kwargs: Any) -> None:
        mkdir(self, *args, **kwargs)
        if self.name.startswith("job-"):
            for name in ("memory.max", "memory.high", "memory.swap.max", "memory.oom.group", "cpu.max", "pids.max"):
                (self / name).touch()
            (self / "io.weight").touch()

    monkeypatch.setattr(Path, "mkdir", make)


def test_the_runner_moves_and_its_controllers_are_enabled(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    found = tree.found()
    assert found.path == tree.group
    assert found.controllers == {"memory", "cpu", "pids", "io"}
    assert found.missing == ()
    assert (tree.group / "supervisor" / "cgroup.procs").read_text() == "0"


def test_a_successor_is_in_the_leaf_already(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.membership.write_text("0::/runner.service/supervisor\n")
    assert tree.found().path == tree.group
    assert (tree.group / "supervisor" / "cgroup.procs").read_text() == "", "nobody is moved"


def test_a_mount_that_shows_only_a_part_of_the_hierarchy(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    text = tree.mounts.read_text()
    tree.mounts.write_text(text.replace("0:30 / ", "0:30 /outer "))
    tree.membership.write_text("0::/outer/runner.service\n")
    assert tree.found().path == tree.group
    tree.membership.write_text("0::/elsewhere\n")
    assert "is not below what is mounted" in tree.missing()
    tree.mounts.write_text(text)
    tree.membership.write_text("0::/../elsewhere\n")
    assert "is not below what is mounted" in tree.missing()


def test_no_cgroup_v2(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.membership.write_text("1:name=systemd:/x\n")
    assert "no cgroup v2" in tree.missing()
    tree.mounts.write_text("20 1 0:20 / /proc rw - proc proc rw\n")
    assert "no cgroup v2" in tree.missing()
    tree.mounts.unlink()
    assert "No such file" in tree.missing()


def test_the_root_of_all_groups_is_nobodys(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    (tree.group / "cgroup.type").unlink()
    assert "root of all cgroups" in tree.missing()


def test_a_group_that_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(tmp_path)
    access = os.access
    forbidden = tree.group / "cgroup.subtree_control"
    monkeypatch.setattr(os, "access", lambda path, mode: path != forbidden and access(path, mode))
    assert tree.missing() == f"{forbidden} cannot be written: not delegated (systemd: Delegate=yes)"


def test_each_missing_controller_is_named_and_the_others_work(tmp_path: Path, limit_files: None) -> None:
    found = Tree(tmp_path, controllers="cpu memory").found()
    assert found.controllers == {"cpu", "memory"}
    assert [line.partition(":")[0] for line in found.missing] == ["pids", "io"]
    limits = Limits(memory_max_bytes=2**20, pids_max=5, io_weight=7)
    group = found.create(JOB, limits)
    assert group.unenforced == (
        "pids_max: there is no pids controller here",
        "io_weight: there is no io controller here",
    )
    assert (group.path / "memory.max").read_text() == "1048576"
    assert (group.path / "pids.max").read_text() == ""


def test_a_busy_group_has_no_controllers(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    control = tree.group / "cgroup.subtree_control"
    control.unlink()
    control.symlink_to("/dev/full")  # answers every write with an error
    found = tree.found()
    assert found.controllers == frozenset()
    assert found.missing[0].startswith("memory: No space left on device; memory_max and")


def test_all_limits_are_written(tmp_path: Path, limit_files: None) -> None:
    limits = Limits(memory_max_bytes=512, memory_high_bytes=400, cpu_quota_percent=150, pids_max=100, io_weight=200)
    group = Tree(tmp_path).found().create(JOB, limits)
    assert group.unenforced == ()
    assert group.path.name == f"job-{JOB}"
    assert group.procs == group.path / "cgroup.procs"
    written = {file.name: file.read_text() for file in group.path.iterdir()}
    assert written == {
        "memory.max": "512",
        "memory.high": "400",
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "cpu.max": "150000 100000",
        "pids.max": "100",
        "io.weight": "default 200",
    }


@pytest.mark.parametrize(("weight", "bfq"), [(1, "1"), (100, "100"), (5_050, "550"), (10_000, "1000")])
def test_the_weight_of_an_older_disk_scheduler(tmp_path: Path, limit_files: None, weight: int, bfq: str) -> None:
    group = Tree(tmp_path).found().create(JOB, Limits())
    (group.path / "io.weight").unlink()
    (group.path / "io.bfq.weight").touch()
    assert cgroups._set(group.path, "io_weight", weight) is None
    assert (group.path / "io.bfq.weight").read_text() == bfq


def test_what_the_kernel_refuses_is_told(tmp_path: Path, limit_files: None) -> None:
    group = Tree(tmp_path).found().create(JOB, Limits())
    (group.path / "pids.max").unlink()
    assert cgroups._set(group.path, "pids_max", 5) == "No such file or directory"


def test_usage(tmp_path: Path) -> None:
    fill(
        tmp_path,
        cpu_stat="usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\n",
        memory_peak="536662016\n",
        memory_events="low 0\nhigh 4\nmax 9\noom 1\noom_kill 3\noom_group_kill 1\n",
        memory_events_local="low 0\nhigh 4\nmax 9\noom 1\noom_kill 0\noom_group_kill 1\n",
        io_stat="8:0 rbytes=100 wbytes=20 rios=1 wios=1 dbytes=0 dios=0\n8:16 rbytes=1 wbytes=2 rios=1 wios=1\n",
    )
    assert JobCgroup(tmp_path, ()).usage() == GroupUsage(
        cpu_seconds=1.5,
        peak_memory_bytes=536662016,
        io_read_bytes=101,
        io_write_bytes=22,
        oom_kills=3,
        at_own_limit=True,
    )


def test_usage_without_controllers(tmp_path: Path) -> None:
    assert JobCgroup(tmp_path, ()).usage() == GroupUsage()


def test_an_older_kernel_keeps_no_peak(tmp_path: Path) -> None:
    group = JobCgroup(tmp_path, ())
    for size in ("100", "700", "300"):
        fill(tmp_path, memory_current=size)
        group.sample()
    fill(tmp_path, memory_current="0", memory_events="oom_kill 0\noom 0\n")
    assert group.usage().peak_memory_bytes == 700


# With the kernel's own files.


def writable_hierarchy() -> Path | None:
    for root, point in cgroups._unified_mounts(Path("/proc/self/mountinfo").read_text()):
        if str(root) == "/" and os.access(point / "cgroup.procs", os.W_OK) and os.access(point, os.W_OK):
            return point
    return None


@pytest.fixture
def group() -> Iterator[Path]:
    point = writable_hierarchy()
    if point is None:
        pytest.skip("needs a writable cgroup v2 hierarchy")
    path = point / f"edge-limits-{uuid.uuid4()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"needs a writable cgroup v2 hierarchy ({error.strerror})")
    yield path
    with contextlib.suppress(OSError):
        (path / "cgroup.kill").write_text("1")
    assert JobCgroup(path, ()).remove(), "a scene left something behind"


def play(group: Path, scene: str, **env: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(SCENES), str(group), scene],
        env=dict(os.environ) | env,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_real_ground(group: Path) -> None:
    told = play(group, "ground")
    assert told["path"] == told["again"] == str(group)
    assert told["own"].endswith(f"/{group.name}/supervisor")


@pytest.mark.parametrize("old", ["", "1"])
def test_real_kill_takes_every_process(group: Path, old: str) -> None:
    told = play(group, "kill", OLD_KERNEL=old)
    assert told["before"] is False
    assert told["populated"] is True
    assert told["members"] >= 3
    assert told["left"] == []
    assert (told["empty"], told["removed"], told["exists"]) == (True, True, False)
    assert told["cpu"] > 0


def test_real_leftovers(group: Path) -> None:
    assert play(group, "leftovers") == {
        "spared": [],
        "alive": True,
        "removed": [JOB],
        "code": -9,
        "taken": [JOB],
        "exists": False,
    }


def test_real_group_of_that_name(group: Path) -> None:
    assert play(group, "again") == {"code": -9, "populated": False, "removed": True}
