"""What a runner says it was loaded from."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import pytest

from airflow_edge_agent.adapters.runner import mark_of
from airflow_edge_agent.runner import origin, server


def test_code_interpreter_and_packages_are_marked() -> None:
    marks = origin.marks()
    assert {server.__file__, sysconfig.get_path("purelib")} < set(marks)
    assert all(origin.mark(Path(path)) == mark for path, mark in marks.items())


def test_a_file_that_is_replaced_has_another_mark_even_with_the_same_time(tmp_path: Path) -> None:
    old, new = tmp_path / "a", tmp_path / "b"
    for path in (old, new):
        path.write_text("same")
        os.utime(path, (1, 1))
    before = origin.mark(old)
    new.rename(old)
    assert origin.mark(old) not in {before, None}


def test_what_comes_and_goes_in_a_folder_changes_it(tmp_path: Path) -> None:
    os.utime(tmp_path, (1, 1))
    before = origin.mark(tmp_path)
    (tmp_path / "package-2.0.dist-info").mkdir()
    assert origin.mark(tmp_path) != before


def test_nothing_has_no_mark(tmp_path: Path) -> None:
    assert origin.mark(tmp_path / "none") is None
    assert mark_of(tmp_path / "none") is None


def test_the_daemon_makes_the_same_marks() -> None:
    assert all(mark_of(Path(path)) == mark for path, mark in origin.marks().items())


def test_what_may_not_be_looked_at_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = Path(sysconfig.get_path("purelib"))
    look = Path.stat

    def stat(path: Path) -> os.stat_result:
        if path == closed:
            raise PermissionError
        return look(path)

    monkeypatch.setattr(Path, "stat", stat)
    assert str(closed) not in origin.marks()
    assert server.__file__ in origin.marks()
    with pytest.raises(PermissionError):
        origin.mark(closed)
