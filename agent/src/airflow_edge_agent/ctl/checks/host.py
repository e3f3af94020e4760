"""This machine: task runtime, bundles, cgroups, disk, journal."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from airflow_edge_agent.adapters.runtime_env import task_environment
from airflow_edge_agent.adapters.runtime_watch import RuntimeWatch
from airflow_edge_agent.ctl.doctor import Check, Scene
from airflow_edge_agent.protocol.versions import runtime_mismatch

TASK_USER = "edge-task"
RUNNER_UNIT = "edge-runner.service"
MIN_FREE_BYTES = 500 * 1024 * 1024
MIN_FREE_INODES = 5_000
CONTROLLERS = ("cpu", "memory", "pids", "io")
SECONDS = 10

_FIND_STATSD = "import importlib.util, sys; sys.exit(importlib.util.find_spec('statsd') is None)"


def runtime(scene: Scene) -> Iterator[Check]:
    """Load the task runtime as tasks do, and compare it with the server."""
    settings = scene.loaded.settings
    python = settings.runner.python
    found, problem = RuntimeWatch(python, task_environment(settings), identity=_identity()).check(prove=True)
    if problem is not None:
        yield Check("task runtime", "fail", problem, "install airflow-edge-runtime, or set runner.python")
    else:
        yield Check("task runtime", "ok", f"loads, Task SDK {found['task_sdk']}, {python}")
    server = scene.status.get("airflow_version")
    if server is not None and (mismatch := runtime_mismatch(**{"airflow": None, **found}, server=server)) is not None:
        yield Check("versions", "warn", mismatch, "install the Task SDK of the server's Airflow in the task runtime")


def task_metrics(scene: Scene) -> Iterator[Check]:
    """Look whether the task runtime can tell metrics, if they are to be relayed."""
    settings = scene.loaded.settings
    if not settings.metrics.relay_statsd:
        return
    try:
        found = subprocess.run(  # noqa: S603 -- the Python is the operator's choice
            [str(settings.runner.python), "-I", "-c", _FIND_STATSD],
            **_identity(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return  # the check of the runtime says more
    if found.returncode == 0:
        yield Check("metrics of tasks", "ok", "the task runtime has the package statsd")
    else:
        yield Check("metrics of tasks", "warn", "relay_statsd is on, but the task runtime lacks the package statsd",
                    f"{settings.runner.python} -m pip install statsd, or the current airflow-edge-runtime")  # fmt: skip


def bundles(scene: Scene) -> Iterator[Check]:
    """Look whether the user that runs tasks can read the Dag bundles."""
    paths = {name: bundle.path for name, bundle in scene.loaded.settings.bundles.items() if bundle.path is not None}
    if not scene.loaded.settings.bundles:
        yield Check("bundles", "warn", "none is configured: no task of a Dag can run",
                    "add [bundles.NAME] with path, NAME as Airflow knows it")  # fmt: skip
        return
    user = _task_user()
    if user is not None:
        who, uid, groups = TASK_USER, user.pw_uid, set(os.getgrouplist(TASK_USER, user.pw_gid))
    else:
        who, uid, groups = "this user", os.geteuid(), {os.getegid(), *os.getgroups()}
    for name, path in paths.items():
        barrier = unreadable(path, uid, groups)
        if barrier is None:
            yield Check("bundles", "ok", f"{name}: {path}")
        else:
            yield Check("bundles", "fail", f"{name}: {barrier} cannot be read by {who}",
                        f"give it read and search permission there, e.g. chmod o+rX {barrier}")  # fmt: skip


def _identity() -> dict[str, Any]:
    """Say as whom the task runtime is run. Never as root: what is installed there may be the task user's own."""
    if os.geteuid() == 0 and (user := _task_user()) is not None:
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    return {}


def _task_user() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(TASK_USER)
    except KeyError:
        return None


def unreadable(path: Path, uid: int, groups: set[int]) -> Path | None:
    """Return the first part of the path that the user cannot pass or read, by its mode bits."""
    for part in (*reversed(path.parents), path):
        try:
            found = part.stat()
        except OSError:
            return part
        bits = stat.S_IMODE(found.st_mode)
        if uid == 0:
            continue
        allowed = bits >> 6 if found.st_uid == uid else bits >> 3 if found.st_gid in groups else bits
        needed = 0o5 if part == path and stat.S_ISDIR(found.st_mode) else 0o4 if part == path else 0o1
        if allowed & needed != needed:
            return part
    return None


def cgroups(scene: Scene) -> Iterator[Check]:
    """Look whether limits of tasks can be kept, and each task be ended with all it has started."""
    told = scene.status.get("isolation")
    if isinstance(told, dict):
        yield from _isolation(told)
        return
    root = Path("/sys/fs/cgroup")
    if not (root / "cgroup.controllers").exists():
        yield Check("cgroups", "warn", "no cgroup v2 here: tasks cannot be limited one by one",
                    "boot with systemd.unified_cgroup_hierarchy=1")  # fmt: skip
        return
    group = _unit_property(RUNNER_UNIT, "ControlGroup")
    if not group:
        yield Check("cgroups", "skip", f"{RUNNER_UNIT} does not run right now")
        return
    try:
        there = (root / group.lstrip("/") / "cgroup.controllers").read_text(encoding="ascii").split()
    except OSError as error:
        yield Check("cgroups", "warn", f"{group}: {error.strerror}", "is Delegate= set in the runner's unit?")
        return
    missing = [name for name in CONTROLLERS if name not in there]
    if missing:
        yield Check("cgroups", "warn", f"the runner has no controller {', '.join(missing)}",
                    f"Delegate=yes in {RUNNER_UNIT}")  # fmt: skip
    else:
        yield Check("cgroups", "ok", f"delegated to the runner: {', '.join(there)}")


def _isolation(told: dict[str, Any]) -> Iterator[Check]:
    """Say what the runner itself has found out."""
    missing = [str(text) for text in told.get("missing", [])]
    if not missing:
        yield Check("cgroups", "ok", "each job has a group of its own, with all limits")
    elif told.get("cgroups"):
        yield Check("cgroups", "warn", "; ".join(missing), f"Delegate=yes in {RUNNER_UNIT}, and a kernel that has them")
    else:
        yield Check("cgroups", "warn", f"jobs are not limited one by one: {'; '.join(missing)}",
                    f"run the runner as {RUNNER_UNIT}, with Delegate=yes; see docs/limits.md")  # fmt: skip
    if told.get("own_supervisor"):
        yield Check("supervision", "warn", f"each task has a supervising process of its own: {told['own_supervisor']}",
                    "it costs memory and CPU; a task runtime of a known Task SDK does without")  # fmt: skip


def disk(scene: Scene) -> Iterator[Check]:
    """Look whether there is room."""
    path = scene.loaded.settings.state_dir
    while not path.exists():
        path = path.parent
    found = os.statvfs(path)
    free = found.f_bavail * found.f_frsize
    spool = scene.loaded.settings.spool_max_mb * 1024 * 1024
    words = f"{path}: {free // 2**20} MiB free"
    if free < MIN_FREE_BYTES:
        yield Check("disk", "fail", words, "make room; the agent takes no jobs on a full disk")
    elif free < spool:
        yield Check("disk", "warn", f"{words}, less than spool_max_mb allows", "make room, or lower spool_max_mb")
    else:
        yield Check("disk", "ok", words)
    # Some file systems count none.
    if found.f_files and found.f_favail < MIN_FREE_INODES:
        yield Check("inodes", "fail", f"{path}: {found.f_favail} left", "remove small files; df -i shows where")


def journal(scene: Scene) -> Iterator[Check]:
    """Look whether the journal keeps what is said."""
    del scene
    if shutil.which("journalctl") is None:
        yield Check("journal", "skip", "no journald here")
        return
    try:
        text = subprocess.run(
            ["journalctl", "-u", "systemd-journald", "-b", "-g", "Suppressed", "-n", "20", "-o", "cat", "--no-pager"],  # noqa: S607 -- by PATH
            capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False,
        ).stdout  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Check("journal", "skip", str(error))
        return
    ours = [line for line in text.splitlines() if "edge-" in line]
    if ours:
        yield Check("journal", "warn", ours[-1], "raise RateLimitBurst= in journald.conf, or lower log.level")
    else:
        yield Check("journal", "ok", "nothing of the agent was suppressed since boot")


def _unit_property(unit: str, name: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 -- systemd's own program
            ["systemctl", "show", "--property", name, "--value", unit],  # noqa: S607
            capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


CHECKS = (runtime, task_metrics, bundles, cgroups, disk, journal)
