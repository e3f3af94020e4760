"""Scenes with real cgroups, each in a process of its own: it is given a group, and tells in JSON what it saw.

Uses the two modules of the runner alone, so it runs wherever there is a Python: ``cgroup_scenes.py GROUP SCENE``.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RUNNER = Path(os.environ.get("RUNNER_PACKAGE") or Path(__file__).parents[3] / "agent/src/airflow_edge_agent/runner")

JOB = "11111111-2222-3333-4444-555555555555"

PYTHON = [sys.executable, "-S", "-c"]


def modules() -> tuple[Any, Any]:
    """Load the runner's modules as a runtime does, without the rest of the distribution."""
    sys.path.insert(0, str(RUNNER.parent))
    return importlib.import_module("runner.cgroups"), importlib.import_module("runner.limits")


def run_in(group: Any, code: str, **options: Any) -> subprocess.Popen[bytes]:
    enter = f"open({str(group.procs)!r}, 'w').write('0')\n"
    return subprocess.Popen([*PYTHON, enter + code], **options)


def until(condition: Any, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def detected(cgroups: Any) -> Any:
    found = cgroups.detect()
    if isinstance(found, cgroups.Missing):
        raise SystemExit(json.dumps({"reason": found.reason}))
    return found


def ground() -> dict[str, Any]:
    cgroups, _ = modules()
    found = detected(cgroups)
    own = Path("/proc/self/cgroup").read_text().strip().splitlines()[-1]
    again = cgroups.detect()
    return {"path": str(found.path), "own": own, "missing": found.missing, "again": str(again.path)}


def kill() -> dict[str, Any]:
    """A job with a grandchild in a session of its own, a group that it made itself, and one that forks all the time."""
    cgroups, limits = modules()
    group = detected(cgroups).create(JOB, limits.Limits())
    before = group.populated()
    inner = group.path / "inner"
    code = (
        "import os, time, subprocess, sys\n"
        f"os.mkdir({str(inner)!r})\n"
        "subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        f"subprocess.Popen(['sh', '-c', 'echo 0 > {inner}/cgroup.procs; exec sleep 600'])\n"
        "print('x', flush=True)\n"
        "while True:\n"
        "    pid = os.fork()\n"
        "    if pid: os.waitpid(pid, os.WNOHANG); time.sleep(0.01); os._exit(0)\n"
    )
    process = run_in(group, code, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    until(lambda: len((inner / "cgroup.procs").read_text().split()) == 1)
    members = group._members()
    populated = group.populated()
    if os.environ.get("OLD_KERNEL"):
        group.__class__.kill = _old_kill(cgroups)
    group.kill()
    empty = group.wait_empty(10)
    process.wait()
    usage = group.usage()
    return {
        "before": before,
        "members": len(members),
        "populated": populated,
        "empty": empty,
        "left": [pid for pid in members if _alive(pid)],
        "removed": group.remove(),
        "exists": group.path.exists(),
        "cpu": usage.cpu_seconds,
    }


def _old_kill(cgroups: Any) -> Any:
    """Make ``kill`` find no ``cgroup.kill``, as before Linux 5.14."""
    write, real = cgroups._write, cgroups.JobCgroup.kill

    def kill(self: Any) -> None:
        cgroups._write = lambda path, text: path.name != "cgroup.kill" and write(path, text)
        real(self)

    return kill


def _alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def leftovers() -> dict[str, Any]:
    """Groups of a runner that was killed go; those of one that lives stay, unless they are named."""
    cgroups, limits = modules()
    found = detected(cgroups)
    group = found.create(JOB, limits.Limits())
    process = run_in(group, "import time; print('x', flush=True); time.sleep(600)", stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    other = cgroups.detect()
    spared = other.remove_stale()
    alive = group.populated()
    # The first runner dies: nobody holds the group any more.
    os.close(found._lock)
    os.close(other._lock)
    third = cgroups.detect()
    removed = third.remove_stale()
    process.wait()
    named = third.create(JOB, limits.Limits())
    fourth = cgroups.detect()
    taken = fourth.remove_stale([JOB, "no-such-job"])
    return {
        "spared": spared,
        "alive": alive,
        "removed": removed,
        "code": process.returncode,
        "taken": taken,
        "exists": named.path.exists(),
    }


def again() -> dict[str, Any]:
    """A group of that name is there already, with a process in it."""
    cgroups, limits = modules()
    found = detected(cgroups)
    first = found.create(JOB, limits.Limits())
    process = run_in(first, "import time; print('x', flush=True); time.sleep(600)", stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    second = found.create(JOB, limits.Limits())
    process.wait()
    return {"code": process.returncode, "populated": second.populated(), "removed": second.remove()}


def memory() -> dict[str, Any]:
    """A job that takes more than it may, with a child: all of it goes, and the log says why."""
    cgroups, limits = modules()
    allowed = limits.Limits(memory_max_bytes=64 * 2**20)
    group = detected(cgroups).create(JOB, allowed)
    code = "import subprocess\nsubprocess.Popen(['sleep', '600'])\nx = [bytearray(2**20) for _ in range(256)]\n"
    process = run_in(group, code)
    process.wait()
    empty = group.wait_empty(10)
    log = Path("/tmp") / f"cgroup-scene-{os.getpid()}.log"
    log.write_text('{"event": "unfinished')
    said = limits.tell_oom(log, group.usage(), allowed)
    lines = log.read_text().splitlines()
    log.unlink()
    return {
        "code": process.returncode,
        "empty": empty,
        "usage": str(group.usage()),
        "said": said,
        "lines": lines,
        "unenforced": group.unenforced,
        "swap": (group.path / "memory.swap.max").exists(),
        "removed": group.remove(),
    }


def cpu() -> dict[str, Any]:
    """Half a core, for two busy processes: the job's own bill against the clock."""
    cgroups, limits = modules()
    group = detected(cgroups).create(JOB, limits.Limits(cpu_quota_percent=50))
    began = time.monotonic()
    code = "import os, time\nos.fork()\nend = time.monotonic() + 3\nwhile time.monotonic() < end: pass\n"
    run_in(group, code).wait()
    group.wait_empty(10)
    wall = time.monotonic() - began
    used = group.usage().cpu_seconds
    group.remove()
    return {"wall": wall, "used": used, "share": used / wall}


def pids() -> dict[str, Any]:
    """A fork bomb of at most ten."""
    cgroups, limits = modules()
    group = detected(cgroups).create(JOB, limits.Limits(pids_max=10))
    code = (
        "import os, time\n"
        "try:\n"
        "    while True: os.fork() or time.sleep(600)\n"
        "except BlockingIOError: print('full', flush=True); time.sleep(600)\n"
    )
    process = run_in(group, code, stdout=subprocess.PIPE)
    assert process.stdout is not None
    said = process.stdout.readline().decode().strip()
    count = len(group._members())
    group.kill()
    empty = group.wait_empty(10)
    process.wait()
    return {"said": said, "count": count, "empty": empty, "removed": group.remove()}


def io() -> dict[str, Any]:
    """Eight MiB, written through to a disk."""
    cgroups, limits = modules()
    group = detected(cgroups).create(JOB, limits.Limits(io_weight=50))
    target = os.environ.get("IO_FILE", "io-scene")
    code = (
        "import os\n"
        f"file = os.open({target!r}, os.O_WRONLY | os.O_CREAT)\n"
        f"os.write(file, bytes(8 * 2**20)); os.fsync(file); os.unlink({target!r})\n"
    )
    run_in(group, code).wait()
    group.wait_empty(10)
    usage = group.usage()
    weight = [(group.path / name).read_text().split() for name in ("io.weight",) if (group.path / name).exists()]
    return {"usage": str(usage), "weight": weight, "unenforced": group.unenforced, "removed": group.remove()}


def main() -> None:
    group, scene = Path(sys.argv[1]), sys.argv[2]
    if str(group) != "-":
        (group / "cgroup.procs").write_text("0")
    signal.alarm(60)
    print(json.dumps(globals()[scene]()))


if __name__ == "__main__":
    main()
