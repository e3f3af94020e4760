"""Tasks that things happen to, and tasks that do things. What really happened is in files outside Airflow."""

# mypy: disable-error-code="untyped-decorator"
# (the type checker is told not to look into Airflow)

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from airflow.sdk import dag, get_current_context, task

PIECE_SECONDS = 0.02
"""Between two lines of a task that waits."""


def conf() -> dict[str, Any]:
    return get_current_context()["dag_run"].conf or {}


def folder() -> Path:
    return Path(conf()["dir"])


def note(what: str, *, place: Path | None = None) -> None:
    """Write down what happens, and in which process."""
    started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    # One write, so that lines of several processes do not mix.
    with ((place or folder()) / "notes").open("ab", buffering=0) as file:
        file.write(f"{what} {os.getpid()} {started}\n".encode())


def hold() -> None:
    """Write lines until told to go, and keep a copy of them."""
    go = folder() / "go"
    with (folder() / "lines").open("w") as copy:
        number = 0
        while not go.exists() or number < 50:
            line = f"line {number} grüße 世界 " + "x" * (number * 7 % 301) + "."
            print(line)
            copy.write(line + "\n")
            copy.flush()
            number += 1
            time.sleep(PIECE_SECONDS)


def stubborn() -> None:
    """Take no notice of being asked to end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hold()


def mute() -> None:
    """Close what is printed to, and go on."""
    for number in range(100):
        print(f"before {number}", flush=True)
    os.close(1)
    os.close(2)
    logging.getLogger("airflow.task").info("after it")


def gusher() -> None:
    """Write much log."""
    for number in range(conf()["lines"]):
        print(f"gush {number:08d} ".ljust(1_000, "x"))


def filler() -> None:
    """Fill the disk, stay there for a while, and fail as a task does that cannot write."""
    with tempfile.NamedTemporaryFile() as file:
        try:
            while True:
                os.write(file.fileno(), b"\0" * 65_536)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            note("full")
            while not (folder() / "go").exists():
                time.sleep(PIECE_SECONDS)
            raise


def leaver() -> None:
    """Leave a process behind that has a session of its own, holds on to all it has inherited, and will not end."""
    place = folder()
    if os.fork() == 0:
        with _dying():
            os.setsid()
            if os.fork() == 0:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                note("left", place=place)
                while True:
                    time.sleep(3_600)
    os.wait()
    while not (place / "notes").read_text().count("left "):
        time.sleep(PIECE_SECONDS)


def bomb() -> None:
    """Double the number of processes as long as there are tokens: there are never more processes than those."""
    place = folder()
    take, give = os.pipe()
    os.set_blocking(take, False)
    os.write(give, b"t" * conf()["processes"])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        with contextlib.suppress(BlockingIOError):
            os.read(take, 1)
            if os.fork() == 0:
                with _dying():
                    # Each in a session of its own: no group of processes holds them together.
                    os.setsid()
                    note("spawned", place=place)
                    _breed(take, place)
        time.sleep(PIECE_SECONDS)


def _breed(take: int, place: Path) -> NoReturn:
    while True:
        with contextlib.suppress(BlockingIOError):
            os.read(take, 1)
            if os.fork() == 0:
                os.setsid()
                note("spawned", place=place)
        time.sleep(PIECE_SECONDS)


@contextlib.contextmanager
def _dying() -> Any:
    """Never let a forked process go on as the task."""
    try:
        yield
    finally:
        os._exit(0)


KINDS: dict[str, Callable[[], None]] = {
    body.__name__: body for body in (hold, stubborn, mute, gusher, filler, leaver, bomb)
}


@dag(schedule=None, catchup=False)
def trial() -> None:
    @task(retries=0)
    def body() -> None:
        note("began")
        KINDS[conf()["kind"]]()
        note("ended")

    body()


@dag(schedule=None, catchup=False, max_active_tasks=500)
def crowd() -> None:
    @task(retries=0)
    def numbers() -> list[int]:
        return list(range(conf()["count"]))

    @task(retries=0)
    def sleeper(number: int) -> int:
        note("began")
        while not (folder() / "go").exists():
            time.sleep(1)
        note("ended")
        return number

    sleeper.expand(number=numbers())


trial()
crowd()
