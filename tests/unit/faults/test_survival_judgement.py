"""The survival suite finds what is not as it must be. A suite that cannot fail proves nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from survival.report import matrix
from survival.trial import Row, Task

JOB = "018035f2-3c9e-4764-ab68-172810d86ef4"


class Server:
    """As much of a server as a log needs."""

    def __init__(self, pieces: list[bytes], told: int | None = None) -> None:
        self.pieces = pieces
        self.size = sum(map(len, pieces))
        self.told = self.size if told is None else told

    def rows(self, statement: str, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
        if "FROM edge_agent_log" in statement:
            return [(at, piece) for at, piece in enumerate(self.pieces) if at > parameters["offset"]][:2]
        if "log_next_offset" in statement:
            return [(self.told,)]
        return [(JOB, "finished", "finished", None, self.told)]


def task(folder: Path, server: Server, log: bytes) -> Task:
    (folder / "task.log").write_bytes(log)
    descriptor = os.open(folder / "task.log", os.O_RDONLY)
    kept = [SimpleNamespace(descriptor=lambda _: descriptor)]
    made = object.__new__(Task)
    made.trial = cast("Any", SimpleNamespace(world=server, kept=kept, seconds=lambda seconds: seconds))
    made.folder, made.run_id, made.dag_id = folder, "r", "trial"
    return made


def lines(*numbers: int) -> bytes:
    return b"".join(json.dumps({"event": f"line {number}"}).encode() + b"\n" for number in numbers)


def test_a_log_that_is_the_same_however_it_was_cut(tmp_path: Path) -> None:
    log = lines(*range(10))
    found = task(tmp_path, Server([log[:7], log[7:30], log[30:31], log[31:]]), log)
    (tmp_path / "lines").write_text("".join(f"line {number}\n" for number in range(10)))
    assert found.log_fault() is None
    assert found.shown_fault() is None


@pytest.mark.parametrize("there", [lines(0, 1), lines(0, 1, 3), lines(0, 1, 2, 3)])
def test_a_log_that_differs(tmp_path: Path, there: bytes) -> None:
    assert task(tmp_path, Server([there]), lines(0, 1, 2)).log_fault() is not None


@pytest.mark.parametrize("shown", [(0, 1), (0, 2), (1, 0, 2), (0, 1, 2, 2)])
def test_lines_that_the_task_has_not_written_so(tmp_path: Path, shown: tuple[int, ...]) -> None:
    log = lines(*shown)
    (tmp_path / "lines").write_text("line 0\nline 1\nline 2\n")
    assert task(tmp_path, Server([log]), log).shown_fault() is not None


def test_what_a_killed_task_may_lack(tmp_path: Path) -> None:
    log = lines(0, 1)
    (tmp_path / "lines").write_text("line 0\nline 1\nline 2\nlin")
    assert task(tmp_path, Server([log]), log).lines_missing() == 1
    (tmp_path / "lines").write_text("line 0\nline 5\nline 1\n")
    with pytest.raises(AssertionError, match="a hole"):
        task(tmp_path, Server([log]), log).lines_missing()


def test_a_process_is_known_by_its_start_as_well(tmp_path: Path) -> None:
    started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    (tmp_path / "notes").write_text(f"began {os.getpid()} {started}\nleft {os.getpid()} 1\nleft 4194304 1\n")
    found = task(tmp_path, Server([]), b"")
    assert [process.pid for process in found.living()] == [os.getpid()]
    assert found.notes("left") == [None, None]
    assert not found.ended_well()


def test_what_takes_too_long_is_a_violation() -> None:
    row = Row("a")
    assert row.within(1.0, 2.0, "it") == 1.0
    assert row.findings == []
    row.within(2.5, 2.0, "it")
    row.expect(0, "nothing")
    assert row.findings == ["it took 2.50 s, at most 2 s", "nothing"]
    assert "| FAIL |" in matrix([row])
    assert "| not here |" in matrix([Row("b", skipped="elsewhere")])
