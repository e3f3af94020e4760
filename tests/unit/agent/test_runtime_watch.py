"""A task runtime that is broken, and mended: with real Pythons."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import stat
import sys
from pathlib import Path

import pytest

from airflow_edge_agent.adapters.runtime_watch import FIRST_RETRY_SECONDS, RuntimeWatch

MISSING = "raise ModuleNotFoundError(\"No module named 'tenacity'\", name='tenacity')\n"


class Place:
    """This Python as task runtime, with a folder before its packages that can break it."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "first"
        self.folder.mkdir()
        self.now = 0.0
        environment = {"PATH": os.environ["PATH"], "HOME": str(root), "PYTHONPATH": str(self.folder)}
        environment |= {"AIRFLOW__CORE__LOAD_EXAMPLES": "False", "PYTHONDONTWRITEBYTECODE": "1"}
        self.watch = RuntimeWatch(Path(sys.executable), environment, clock=lambda: self.now)

    def break_it(self) -> None:
        (self.folder / "tenacity.py").write_text(MISSING)

    def mend(self) -> None:
        (self.folder / "tenacity.py").unlink()

    def look(self, *, prove: bool = False) -> str | None:
        return self.watch.check(prove=prove)[1]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_proof_names_what_is_missing(place: Place) -> None:
    place.break_it()
    assert place.look() is None, "a quick look cannot see it"
    problem = place.look(prove=True)
    assert problem == (
        f"the task runtime {sys.executable} does not start (ModuleNotFoundError: No module named 'tenacity'): "
        "check what is installed there"
    )


def test_a_runtime_that_works(place: Place) -> None:
    versions, problem = place.watch.check(prove=True)
    assert problem is None
    assert versions == {
        "task_sdk": importlib.metadata.version("apache-airflow-task-sdk"),
        "airflow": importlib.metadata.version("apache-airflow-core"),
    }


def test_what_the_runner_said_stands_until_something_has_changed(place: Place) -> None:
    place.break_it()
    place.watch.failed("it cannot")
    assert place.look() == "it cannot"
    place.now = FIRST_RETRY_SECONDS - 1
    assert place.look() == "it cannot"
    place.mend()
    assert place.look() is None
    place.watch.proven()
    assert place.look(prove=True) is None


def test_what_changes_and_stays_broken_is_told_anew(place: Place) -> None:
    place.break_it()
    place.watch.failed("it cannot")
    place.look()
    (place.folder / "another.py").touch()
    problem = place.look()
    assert problem is not None
    assert "No module named 'tenacity'" in problem
    place.mend()
    assert place.look() is None, "mended right after a proof"


def test_without_a_visible_change_it_is_tried_ever_less_often(place: Place) -> None:
    proofs: list[float] = []

    def prove() -> str:
        proofs.append(place.now)
        return "still not"

    place.watch._prove = prove  # type: ignore[method-assign]  # counts
    place.watch.failed("it cannot")
    place.watch._fingerprint = lambda: "same"  # type: ignore[method-assign]  # nothing changes
    for second in range(0, 3_600, 30):
        place.now = float(second)
        assert place.look() in ("it cannot", "still not")
    assert proofs == [30.0, 90.0, 210.0, 450.0, 930.0, 1830.0, 2730.0]


def test_a_proof_does_not_overrule_what_the_runner_said_meanwhile(place: Place) -> None:
    def prove() -> None:
        place.watch.failed("said meanwhile")

    place.watch._prove = prove  # type: ignore[method-assign]  # something happens during the proof
    assert place.look(prove=True) == "said meanwhile"


def test_a_runner_that_works_is_proof_enough(place: Place) -> None:
    place.break_it()
    place.watch.proven()
    assert place.look(prove=True) is None


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("#!/bin/sh\ncase $* in *airflow*) kill -9 $$;; *) echo 1.3.0;; esac\n", "(exit code -9)"),
        ("#!/bin/sh\ncase $* in *import_module*) echo one >&2; echo two >&2; exit 3;; *) echo 1.3.0;; esac\n", "(two)"),
    ],
)
def test_a_python_that_just_ends(tmp_path: Path, program: str, words: str) -> None:
    python = tmp_path / "python"
    # The quick look asks for a version, the proof imports.
    python.write_text(program.replace("*airflow*", "*import_module*"))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    watch = RuntimeWatch(python, {"PATH": os.environ["PATH"]})
    problem = watch.check(prove=True)[1]
    assert problem is not None
    assert words in problem


async def test_checks_in_a_thread_and_words_of_the_runner_do_not_disturb_each_other(place: Place) -> None:
    place.watch._prove = lambda: None  # type: ignore[method-assign]  # at once
    checks = [asyncio.to_thread(place.watch.check, prove=True) for _ in range(4)]
    done = asyncio.gather(*checks)
    place.watch.failed("it cannot")
    await done
    assert place.look() == "it cannot"
