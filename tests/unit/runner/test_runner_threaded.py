"""What belongs to a supervising thread, and siblings. Without Airflow."""

from __future__ import annotations

import errno
import io
import os
import re
import subprocess
import sys
import threading

import pytest

from airflow_edge_agent.runner import siblings, threaded
from airflow_edge_agent.runner.outcome import Answer, Terminated


def supervision(output: io.StringIO) -> threaded.Supervision:
    def nothing(*_: object, **__: object) -> None:
        raise AssertionError("not to be called")

    return threaded.Supervision(fork=nothing, reap=nothing, on_process=nothing, output=output)  # type: ignore[arg-type] # never called


def on_thread(work: object) -> None:
    thread = threading.Thread(target=work)  # type: ignore[arg-type] # a function
    thread.start()
    thread.join()


def test_output_goes_to_the_job_of_the_writing_thread() -> None:
    own, jobs = io.StringIO(), [io.StringIO(), io.StringIO()]
    output = threaded.ThreadOutput(own)

    def write(number: int) -> None:
        with threaded.supervising(supervision(jobs[number])):
            print(f"of {number}", file=output)

    on_thread(lambda: write(0))
    on_thread(lambda: write(1))
    print("of the runner", file=output)
    assert [job.getvalue() for job in jobs] == ["of 0\n", "of 1\n"]
    assert own.getvalue() == "of the runner\n"


def test_a_full_disk_does_not_end_a_supervisor() -> None:
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    print("lost", file=threaded.ThreadOutput(Full()))


class Masker:
    def __init__(self) -> None:
        self.patterns: set[str] = set()
        self.replacer: re.Pattern[str] | None = None

    def add(self, secret: str) -> None:
        self.patterns.add(secret)
        self.replacer = re.compile("|".join(self.patterns))


def test_each_thread_masks_its_own_secrets() -> None:
    masker = Masker()
    masker.add("shared-by-none")
    threaded._mask_per_thread(masker)
    seen: dict[str, object] = {}

    def first() -> None:
        masker.add("secret-of-one")
        on_thread(second)
        seen["first"] = set(masker.patterns)

    def second() -> None:
        seen["before"] = masker.replacer
        masker.patterns = {"secret-of-two"}
        seen["second"] = set(masker.patterns)

    on_thread(first)
    assert seen == {"first": {"secret-of-one"}, "before": None, "second": {"secret-of-two"}}
    assert masker.patterns == {"shared-by-none"}


def test_an_aborted_job_makes_no_further_call() -> None:
    one = supervision(io.StringIO())
    one.check()
    one.terminate()
    assert one.aborted
    with pytest.raises(Terminated):
        one.check()


def test_a_job_whose_state_was_delivered_is_not_aborted() -> None:
    one = supervision(io.StringIO())
    one.seen.start = Answer(200)
    one.seen.delivered = "success"
    one.terminate()
    assert not one.aborted


SIBLINGS = """
import os, sys, threading, time
from airflow_edge_agent.runner import processes, siblings
processes.become_subreaper()
me = os.getpid()
between = os.fork()
if between == 0:
    cloner = siblings.Cloner()
    assert cloner.by_clone or sys.argv[1] == "twice"
    cloner.by_clone = sys.argv[1] == "clone"
    pid = cloner.fork()
    if pid == 0:
        ok = os.getppid() == me and threading.main_thread() is threading.current_thread()
        ok = ok and threading.get_native_id() == os.getpid()
        thread = threading.Thread(target=lambda: None); thread.start(); thread.join()
        child = os.fork()
        if child == 0:
            os._exit(3)
        ok = ok and os.waitpid(child, 0) == (child, 3 << 8)
        os._exit(7 if ok else 1)
    try:
        os.waitpid(pid, 0)
        os._exit(1)
    except ChildProcessError:
        os._exit(0)
ends = dict(os.wait() for _ in range(2))
assert ends.pop(between) == 0, ends
assert list(ends.values()) == [7 << 8], ends
"""


@pytest.mark.parametrize("how", ["clone", "twice"])
def test_a_sibling_is_a_child_of_the_parent(how: str) -> None:
    if how == "clone" and not siblings.Cloner().by_clone:
        pytest.skip("not on this machine")
    subprocess.run([sys.executable, "-c", SIBLINGS, how], check=True, timeout=30, env=dict(os.environ))
