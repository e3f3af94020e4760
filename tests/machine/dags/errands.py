"""Tasks for machines. What really happened there is in files outside Airflow, below ``/srv/errands/<name>``."""

# mypy: disable-error-code="untyped-decorator"
# (the type checker is told not to look into Airflow)

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from airflow.sdk import dag, get_current_context, task

LINE_SECONDS = 0.05
"""Between two lines of a task that waits."""


def folder() -> Path:
    return Path("/srv/errands", get_current_context()["dag_run"].conf["name"])


def note(what: str) -> None:
    # One write, so that lines of several processes do not mix.
    with (folder() / "notes").open("ab", buffering=0) as file:
        file.write(f"{what} {get_current_context()['ti'].try_number} {os.getpid()}\n".encode())


@dag(schedule=None, catchup=False)
def hold() -> None:
    """Write lines until told to go, and keep a copy of them."""

    @task(retries=0)
    def hold() -> None:
        if get_current_context()["dag_run"].conf.get("deaf"):
            # The SDK has set a handler of its own before.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        note("began")
        with (folder() / "lines").open("w") as copy:
            number = 0
            while not (folder() / "go").exists() or number < 20:
                line = f"line {number} grüße {'x' * (number * 7 % 101)}."
                print(line)
                copy.write(line + "\n")
                copy.flush()
                number += 1
                time.sleep(LINE_SECONDS)
        note("ended")

    hold()


@dag(schedule=None, catchup=False)
def spy() -> None:
    """Try what a task must not be able to do, and return how far each attempt came."""

    @task(retries=0)
    def spy() -> dict[str, Any]:
        conf = get_current_context()["dag_run"].conf
        daemon = conf["daemon_pid"]
        found: dict[str, Any] = {"uid": os.getuid(), "groups": os.getgroups()}
        for path in (*conf["secrets"], f"/proc/{daemon}/mem", f"/proc/{daemon}/environ", f"/proc/{daemon}/cmdline"):
            try:
                with open(path, "rb") as file:  # noqa: PTH123  a path of another kind of file system
                    found[path] = f"read {len(file.read(10))}"
            except OSError as error:
                found[path] = type(error).__name__
        for path in conf["sockets"]:
            code = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
            done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
            found[path] = done.stderr.strip().rpartition("\n")[2].partition(":")[0] or "connected"
        try:
            os.kill(daemon, 0)
            found["kill"] = "allowed"
        except OSError as error:
            found["kill"] = type(error).__name__
        found["variables"] = sorted(os.environ)
        parent = Path(f"/proc/{os.getppid()}/environ")
        try:
            found["parent_environ"] = len(parent.read_bytes())
        except OSError as error:
            found["parent_environ"] = type(error).__name__
        return found

    spy()


@dag(schedule=None, catchup=False)
def glutton() -> None:
    """Take memory until somebody objects."""

    @task(retries=0)
    def glutton() -> None:
        note("began")
        held = []
        for number in range(get_current_context()["dag_run"].conf["megabytes"]):
            held.append(os.urandom(2**20))
            if number % 16 == 0:
                print(f"{number} MB held")
        note("ended")

    glutton()


@dag(schedule=None, catchup=False)
def rabbits() -> None:
    """Start processes until that is refused, and return how many there were."""

    @task(retries=0)
    def rabbits() -> int:
        note("began")
        children: list[int] = []
        try:
            while len(children) < get_current_context()["dag_run"].conf["most"]:
                pid = os.fork()
                if pid == 0:
                    time.sleep(3600)
                    os._exit(0)
                children.append(pid)
        except BlockingIOError as error:
            print(f"refused after {len(children)}: {error}")
        finally:
            for pid in children:
                os.kill(pid, 9)
        note("ended")
        return len(children)

    rabbits()


@dag(schedule=None, catchup=False)
def scribe() -> None:
    """Write megabytes to the disk, and read them from there again."""

    @task(retries=0)
    def scribe() -> int:
        path = folder() / "text"
        with path.open("wb") as file:
            for _ in range(get_current_context()["dag_run"].conf["megabytes"]):
                file.write(os.urandom(2**20))
            file.flush()
            os.fsync(file.fileno())
            # Out of memory, so that they have to be read.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return len(path.read_bytes())

    scribe()


@dag(schedule=None, catchup=False)
def place() -> None:
    """Return what the kernel says about where the task is."""

    @task(retries=0)
    def place() -> dict[str, Any]:
        cgroup = Path("/proc/self/cgroup").read_text().strip().rpartition(":")[2]
        files = {}
        for name in ("memory.max", "memory.high", "cpu.max", "pids.max", "memory.oom.group"):
            try:
                files[name] = Path(f"/sys/fs/cgroup{cgroup}/{name}").read_text().strip()
            except OSError as error:
                files[name] = type(error).__name__
        return {"cgroup": cgroup, **files}

    place()


hold()
spy()
glutton()
rabbits()
scribe()
place()
