from __future__ import annotations

import selectors
import socket
import subprocess
import sys
import textwrap

from airflow_edge_agent.runner.waking import WakingSelector, as_default_selector


def run(code: str) -> str:
    """Run code in a process of its own, for it waits for any child."""
    head = "import os, signal, time\nfrom airflow_edge_agent.runner.waking import WakingSelector\n"
    program = head + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()


def test_it_is_a_selector_like_the_default_one() -> None:
    left, right = socket.socketpair()
    with left, right, WakingSelector() as selector:
        selector.register(left, selectors.EVENT_READ, "data")
        assert selector.select(0) == []
        right.send(b"x")
        assert [key.data for key, _ in selector.select(10)] == ["data"]


def test_waiting_on_nothing_ends_with_the_child() -> None:
    out = run("""
        begun = time.monotonic()
        pid = os.fork()
        if pid == 0:
            time.sleep(0.3)
            os._exit(0)
        with WakingSelector() as selector:
            assert selector.select(30) == []
        assert os.waitpid(pid, os.WNOHANG)[0] == pid
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
        print(time.monotonic() - begun < 10)
    """)
    assert out == "True"


def test_a_child_that_nobody_waits_for_is_announced_once() -> None:
    out = run("""
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with WakingSelector() as selector:
            selector.select(30)
            begun = time.monotonic()
            selector.select(0.2)
        print(time.monotonic() - begun >= 0.2)
    """)
    assert out == "True"


def test_a_signal_that_came_too_early_is_sent_again() -> None:
    out = run("""
        got = []
        signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
        WakingSelector.pending_signal = signal.SIGTERM
        with WakingSelector() as selector:
            selector.select(0.01)
            selector.select(0.01)
        print(len(got), WakingSelector.pending_signal)
    """)
    assert out == "1 None"


def test_without_any_child_it_does_not_spin() -> None:
    out = run("""
        with WakingSelector() as selector:
            selector.select(0.01)
            begun = time.monotonic()
            selector.select(0.2)
        print(time.monotonic() - begun >= 0.2)
    """)
    assert out == "True"


def test_only_imports_meanwhile_get_it() -> None:
    before = selectors.DefaultSelector
    with as_default_selector():
        assert selectors.DefaultSelector is WakingSelector
    assert selectors.DefaultSelector is before
