from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from airflow_edge_agent.runner import processes
from harness.waiting import wait_until

# Tells its children's pids when they run: one in its session, one in a session of its own with a child of its own.
PARENT = """
import subprocess, sys, time
plain = subprocess.Popen(["sleep", "600"])
code = "import subprocess; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
other = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE, text=True)
print(plain.pid, other.pid, other.stdout.readline(), flush=True)
time.sleep(600)
"""


@contextmanager
def family() -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        children = [int(word) for word in parent.stdout.readline().split()]
        try:
            yield parent, children
        finally:
            for pid in [*children, parent.pid]:
                if alive(pid):
                    os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    process = processes.look(pid)
    return process is not None and not process.dead


def test_a_process_is_named_by_pid_and_start_time() -> None:
    me = processes.look(os.getpid())
    assert me is not None
    assert (me.pid, me.parent, me.session) == (os.getpid(), os.getppid(), os.getsid(0))
    assert me.start_time > 0
    assert not me.dead
    assert processes.look(2**22 + 1) is None


def test_a_name_with_parentheses_confuses_nobody() -> None:
    code = "import sys; from airflow_edge_agent.runner import processes as p, processes; import os; "
    code += "p.set_name('a) R (b'); me = p.look(os.getpid()); print(me.parent == os.getppid())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "True"


def test_a_family_is_complete_across_sessions() -> None:
    with family() as (parent, children):
        assert {p.pid for p in processes.family(parent.pid)} == {parent.pid, *children}


def test_a_whole_family_is_killed() -> None:
    with family() as (parent, children):
        hit = processes.kill_family(parent.pid, session=parent.pid)
        assert {p.pid for p in hit} == {parent.pid, *children}
        assert parent.wait(10) == -signal.SIGKILL
        wait_until(lambda: not any(map(alive, children)), seconds=10, what="the end of the children", poll_seconds=0.01)


def test_a_session_outlives_its_leader() -> None:
    code = "import subprocess; print(subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL).pid)"
    leader = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    output, _ = leader.communicate()
    member = int(output)
    try:
        since = processes.look(member)
        assert since is not None
        assert processes.kill_family(leader.pid, session=leader.pid, since=since.start_time + 1) == []
        assert [p.pid for p in processes.kill_family(leader.pid, session=leader.pid, since=0)] == [member]
        wait_until(lambda: not alive(member), seconds=10, what="the end of the member", poll_seconds=0.01)
    finally:
        if alive(member):
            os.kill(member, signal.SIGKILL)


def test_a_signal_goes_to_no_namesake() -> None:
    with subprocess.Popen(["sleep", "600"]) as child:
        real = processes.look(child.pid)
        assert real is not None
        older = processes.Process(child.pid, real.parent, real.session, real.start_time - 1, dead=False)
        assert processes.send(older, signal.SIGKILL) is False
        assert child.poll() is None
        assert processes.send(real, signal.SIGKILL) is True
        assert child.wait(10) == -signal.SIGKILL
    assert processes.send(real, signal.SIGKILL) is False


def test_own_children_are_found() -> None:
    with subprocess.Popen(["sleep", "600"]) as child:
        try:
            assert child.pid in processes.own_children()
        finally:
            child.kill()
