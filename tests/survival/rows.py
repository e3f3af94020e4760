"""The rows: each lets one fault happen to a task, or a task do its worst, and writes down what came of it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from faults.catalogue import Unavailable
from harness.waiting import wait_until
from survival.trial import Row, Task, Trial

REATTACH_SECONDS = 2.0
TOLD_SECONDS = 2.0
"""How soon the end of all tasks is known when the runner has died."""

GRACE_SECONDS = 2.0
"""Between SIGTERM and SIGKILL, as the suite configures it."""

HEARTBEAT_SECONDS = 5.0
REBOOT_SECONDS = 5.0
"""How soon after its start the daemon of a rebooted host has told what became of its tasks."""

NEXT_VERSION = "99.1"


@dataclass(frozen=True)
class Sizes:
    """How much of it."""

    log_lines: int
    """Lines of 1000 characters that the gusher writes."""
    crowd: int
    bomb: int
    """Most processes of the fork bomb."""
    heartbeats_seconds: float
    """How long the crowd's heartbeats are watched."""


FULL = Sizes(log_lines=1_000_000, crowd=100, bomb=400, heartbeats_seconds=60)
SMALL = Sizes(log_lines=20_000, crowd=20, bomb=100, heartbeats_seconds=15)


@dataclass(frozen=True)
class Fault:
    """One row of the matrix."""

    name: str
    act: Callable[[Trial, Row, Sizes], None]
    settings: Callable[[Sizes], dict[str, Any]] = field(default=lambda _: {})
    copy: bool = False
    """Whether the agent runs from a copy of the code."""
    small_disk: bool = False
    sample: bool = False
    """Whether every change meets it."""
    elsewhere: str | None = None
    """Where it is tested, if it cannot be here."""


# The daemon ends


def _away(end: Callable[[Trial], None]) -> Callable[[Trial, Row, Sizes], None]:
    """End the daemon under two tasks, let one end meanwhile, and start it again."""

    def act(trial: Trial, row: Row, _: Sizes) -> None:
        goes_on, ends = trial.task("hold"), trial.task("hold")
        _wait_sent(goes_on)
        process = goes_on.process()
        end(trial)
        ends.go()
        ends.wait_gone(time.monotonic())
        began = _come_back(trial, row)
        row.truth_seconds = ends.wait_told(began)
        row.expect(goes_on.process() == process, "the running task has another process than before")
        goes_on.go()
        _well(row, goes_on, ends)

    return act


def _come_back(trial: Trial, row: Row) -> float:
    position, began = len(trial.agent.log_text()), time.monotonic()
    trial.agent.start()
    wait_until(
        lambda: "still running, taken over" in trial.agent.log_text()[position:],
        seconds=trial.seconds(30),
        what="the running task to be taken over",
        poll_seconds=0.02,
        seen=lambda: trial.agent.tail(3),
    )
    row.reattach_seconds = row.within(
        time.monotonic() - began, trial.seconds(REATTACH_SECONDS), "taking the running task over"
    )
    return began


def _restart(trial: Trial) -> None:
    # As the unit's ExecStop does, when systemd says that the stop is part of a restart.
    trial.control().ask("stopping", kind="restart")
    code = trial.agent.stop(trial.seconds(30))
    assert code == 0, f"the daemon ended with {code}: {trial.agent.tail(2)}"


def _signalled(number: int) -> Callable[[Trial], None]:
    def end(trial: Trial) -> None:
        assert trial.agent.process is not None
        trial.agent.process.signal(number)
        code = trial.agent.process.wait(trial.seconds(10))
        assert code == -number, f"the daemon ended with {code}, not by signal {number}"

    return end


# Upgrades


def _daemon_upgrade(trial: Trial, row: Row, _: Sizes) -> None:
    task = trial.task("hold")
    _wait_sent(task)
    old = task.process().ppid()
    trial.upgrade(NEXT_VERSION)
    _restart(trial)
    position = len(trial.agent.log_text())
    began = _come_back(trial, row)
    version = "SELECT versions FROM edge_agent WHERE name = :name"
    wait_until(
        lambda: NEXT_VERSION in str(trial.world.rows(version, {"name": trial.agent.name})),
        seconds=trial.seconds(30),
        what="the new version at the server",
        poll_seconds=0.02,
    )
    row.truth_seconds = time.monotonic() - began
    trial.agent.wait_for_log("renews the runner", after=position)
    _new_runner(trial, row, task, old)


def _runner_upgrade(trial: Trial, row: Row, _: Sizes) -> None:
    task = trial.task("hold")
    _wait_sent(task)
    old = task.process().ppid()
    row.expect(not trial.control().ask("reload")["runner_renewed"], "a runner was renewed although nothing had changed")
    trial.upgrade(NEXT_VERSION)
    began = time.monotonic()
    row.expect(trial.control().ask("reload")["runner_renewed"], "the runner was not renewed")
    wait_until(
        lambda: list((trial.agent.state_dir / "runner").glob("runner-*.sock")),
        seconds=trial.seconds(60),
        what="the successor to take over",
        poll_seconds=0.02,
    )
    row.truth_seconds = time.monotonic() - began
    _new_runner(trial, row, task, old)


def _new_runner(trial: Trial, row: Row, task: Task, old: int) -> None:
    wait_until(
        lambda: list((trial.agent.state_dir / "runner").glob("runner-*.sock")),
        seconds=trial.seconds(60),
        what="the successor to take over",
    )
    later = trial.task("hold")
    row.expect(later.process().ppid() != old, "a new task runs in the old runner")
    row.expect(task.process().ppid() == old, "the running task has lost its runner")
    later.go()
    task.go()
    _well(row, task, later)
    wait_until(lambda: not psutil.pid_exists(old), seconds=trial.seconds(30), what="the old runner to leave")


# The runner dies


def _runner_dies(*, zygote_too: bool) -> Callable[[Trial, Row, Sizes], None]:
    def act(trial: Trial, row: Row, _: Sizes) -> None:
        task = trial.task("hold")
        _wait_sent(task)
        runner = task.process().parent()
        assert runner is not None
        victims = [runner, *(trial.agent.zygotes() if zygote_too else [])]
        for victim in victims:
            victim.kill()
        killed = time.monotonic()
        gone = task.wait_gone(killed)
        row.truth_seconds = task.wait_told(killed)
        row.within(row.truth_seconds, trial.seconds(TOLD_SECONDS), "telling the end of the task")
        row.within(gone, trial.seconds(TOLD_SECONDS), "ending the task's processes")
        _ended(row, task, "failed", ("lost",), "the runner died")
        _still_works(trial, row)

    return act


def _reboot(trial: Trial, row: Row, _: Sizes) -> None:
    """Kill everything, and let the next daemon see another boot id, as after a power failure."""
    task = trial.task("hold")
    _wait_sent(task)
    with _other_boot(trial.root):
        runner = task.process().parent()
        assert runner is not None
        victims = [*trial.agent.zygotes(), runner, task.process()]
        trial.agent.kill()
        for victim in victims:
            victim.kill()
        psutil.wait_procs(victims, timeout=10)
        trial.agent.program = _booted_again(trial)
        began = time.monotonic()
        trial.agent.start()
        row.truth_seconds = task.wait_told(began)
        row.within(row.truth_seconds, trial.seconds(REBOOT_SECONDS), "telling the end of the task")
        row.remark = "from the start of the daemon; the server sees that nobody speaks for the boot before"
        _ended(row, task, "failed", ("lost",), "rebooted")
        _still_works(trial, row)


class _other_boot:  # noqa: N801 -- read as a statement
    """Check that this machine lets us show a process another boot id."""

    def __init__(self, root: Path) -> None:
        self._file = root / "boot_id"

    def __enter__(self) -> None:
        self._file.write_text(f"{uuid.uuid4()}\n")
        tried = subprocess.run(
            ["unshare", "--mount", "mount", "--bind", self._file, "/proc/sys/kernel/random/boot_id"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if tried.returncode != 0:
            raise Unavailable(f"no other boot id can be shown here ({tried.stderr.strip()}): see QEMU")

    def __exit__(self, *_: object) -> None:
        self._file.unlink()


def _booted_again(trial: Trial) -> Path:
    program = trial.root / "edge-agent-after-boot"
    program.write_text(
        "#!/bin/sh\n"
        'exec unshare --mount sh -c \'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"\' '
        f'{shlex.quote(str(trial.root / "boot_id"))} {shlex.quote(str(trial.agent.program))} "$@"\n'
    )
    program.chmod(0o755)
    return program


# Tasks that do their worst


def _ended_by_force(kind: str) -> Callable[[Trial, Row, Sizes], None]:
    def act(trial: Trial, row: Row, sizes: Sizes) -> None:
        task = trial.task(kind, processes=sizes.bomb)
        if kind == "bomb":
            wait_until(
                lambda: len(task.living()) > sizes.bomb * 0.9,
                seconds=trial.seconds(60),
                what="the bomb to go off",
                seen=lambda: len(task.living()),
            )
            row.remark = f"{len(task.living())} processes, each in a session of its own"
        else:
            _wait_sent(task)
        asked = task.fail()
        row.truth_seconds = task.wait_told(asked)
        row.within(row.truth_seconds, trial.seconds(GRACE_SECONDS + 5), "ending it")
        row.left = len(task.living())
        # Who is first: the server, that tells the agent, or the task's supervisor, that hears it from Airflow.
        _ended(row, task, "failed", ("killed", "superseded"), "")
        _still_works(trial, row)

    return act


def _mute(trial: Trial, row: Row, _: Sizes) -> None:
    task = trial.task("mute")
    began = time.monotonic()
    row.truth_seconds = task.wait_told(began)
    _well(row, task)
    events = list(task.events())
    expected = [f"before {number}" for number in range(100)]
    row.expect([event for event in events if event.startswith("before ")] == expected, "printed lines are missing")
    row.expect("after it" in events, "the line that was logged afterwards is missing")


def _gusher(trial: Trial, row: Row, sizes: Sizes) -> None:
    began = time.monotonic()
    task = trial.task("gusher", lines=sizes.log_lines)
    wait_until(
        task.ended_well, seconds=trial.seconds(60 + sizes.log_lines / 1_000), what="the task to end", poll_seconds=0.2
    )
    written = time.monotonic()
    row.truth_seconds = task.wait_told(written, seconds=60 + sizes.log_lines / 1_000)
    _well(row, task)
    count = 0
    for event in task.events():
        if event.startswith("gush "):
            row.expect(event == f"gush {count:08d} ".ljust(1_000, "x"), f"line {count} is missing or damaged")
            count += 1
        if row.findings:
            break
    row.expect(count == sizes.log_lines, f"{count} lines of {sizes.log_lines} are in the log")
    seconds = written - began
    row.remark = f"{sizes.log_lines / 1_000:.0f} MB in {seconds:.0f} s"


def _filler(trial: Trial, row: Row, _: Sizes) -> None:
    bystander = trial.task("hold")
    task = trial.task("filler")
    wait_until(lambda: task.notes("full"), seconds=trial.seconds(30), what="the disk to be full")
    # Let both write their logs into it, and the agent look at it.
    wait_until(
        lambda: os.statvfs(trial.agent.state_dir).f_bavail == 0, seconds=trial.seconds(10), what="the disk to be full"
    )
    row.truth_seconds = task.wait_told(task.go())
    _ended(row, task, "failed", ("finished",), "")
    row.expect(not bystander.ended_well(), "the other task has ended")
    bystander.go()
    row.expect(bystander.outcome()[0] == "success", "the other task has failed, too")
    fault = bystander.log_fault()
    row.expect(fault is None, f"the other task's log: {fault}")
    _still_works(trial, row)


def _leaver(trial: Trial, row: Row, _: Sizes) -> None:
    bystander = trial.task("hold")
    task = trial.task("leaver")
    wait_until(task.ended_well, seconds=trial.seconds(30), what="the task to end", poll_seconds=0.02)
    row.truth_seconds = task.wait_told(time.monotonic())
    row.left = len(task.living())
    row.expect(len(task.notes("left")) == 1, "it left nothing behind")
    row.expect(not bystander.ended_well() and bystander.living(), "the other task has ended")
    bystander.go()
    _well(row, task, bystander)


def _crowd(trial: Trial, row: Row, sizes: Sizes) -> None:
    crowd = trial.crowd(sizes.crowd)
    asked = "SELECT last_contact_at FROM edge_agent WHERE name = :name"
    longest, until = 0.0, time.monotonic() + sizes.heartbeats_seconds
    while time.monotonic() < until:
        ((contact,),) = trial.world.rows(asked, {"name": trial.agent.name})
        longest = max(longest, time.time() - contact.timestamp())
        time.sleep(0.2)
    row.within(longest, HEARTBEAT_SECONDS + trial.seconds(1), "the longest time between two heartbeats")
    usage = trial.agent.usage()
    share = (usage.jobs_pss_bytes + usage.runner_pss_bytes) / sizes.crowd / 2**20
    row.expect(len(crowd.living()) == sizes.crowd, f"only {len(crowd.living())} of {sizes.crowd} tasks are there")
    row.remark = (
        f"{sizes.crowd} sleeping tasks: at most {longest:.1f} s between heartbeats, {HEARTBEAT_SECONDS:g} wanted; "
        f"{share:.1f} MiB PSS each, runner included"
    )
    crowd.go()
    ended = wait_until(
        lambda: time.monotonic() if len(crowd.notes("ended")) == sizes.crowd else None,
        seconds=trial.seconds(60 + sizes.crowd),
        what="all tasks to end",
    )
    assert ended is not None
    row.truth_seconds = crowd.wait_told(ended)
    _well(row, crowd)


# What is true of many


def _wait_sent(task: Task) -> None:
    """Wait until the server has a piece of the log: the fault then happens in the middle of it."""
    wait_until(
        lambda: task.jobs() and task.log_bytes() > 0,
        seconds=task.trial.seconds(30),
        what="a piece of the log at the server",
        seen=lambda: f"{task.jobs()} {task.trial.agent.tail(3)}",
    )


def _well(row: Row, *tasks: Task) -> None:
    """The tasks have come to their ends, Airflow says so, and the logs are complete."""
    for task in tasks:
        state, outcome, detail = task.outcome()
        row.outcome = f"{state}, {outcome}"
        row.expect(state == "success" and outcome == "finished", f"a task is {state}, {outcome}: {detail}")
        row.expect(task.ended_well(), "the body of a task did not come to its end")
        _log(row, task)
    row.left = (row.left or 0) + sum(len(task.living()) for task in tasks)


def _ended(row: Row, task: Task, state: str, outcomes: Collection[str], detail: str) -> None:
    """The task has not come to its end, and server and Airflow say what has ended it."""
    found = task.outcome()
    row.outcome = f"{found[0]}, {found[1]}" + (f": {found[2]}" if detail else "")
    row.expect(
        found[0] == state and found[1] in outcomes and detail in found[2],
        f"the task is {found}, not {(state, outcomes, detail)}",
    )
    row.expect(not task.ended_well(), "the body has come to its end all the same")
    _log(row, task)
    row.left = (row.left or 0) + len(task.living())


def _log(row: Row, task: Task) -> None:
    fault = task.log_fault()
    row.expect(fault is None, f"log of {task.folder.name}: {fault}")
    if fault is None and (task.folder / "lines").exists():
        if task.ended_well():
            fault = task.shown_fault()
            row.expect(fault is None, f"log of {task.folder.name}: {fault}")
        else:
            # What was on its way to a runner that was killed, nobody has.
            missing = task.lines_missing()
            row.expect(missing <= 10, f"log of {task.folder.name}: {missing} lines are missing")
            last = "last line" if missing == 1 else f"last {missing} lines"
            row.log = f"identical, {last} not written" if missing > 0 else "identical"
            return
    row.log = "identical" if fault is None and not row.log else row.log or "differs"


def _still_works(trial: Trial, row: Row) -> None:
    task = trial.task("hold")
    task.go()
    row.expect(task.outcome()[0] == "success", "the next task does not end well")


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("daemon: restart", _away(_restart)),
        Fault("daemon: SIGKILL", _away(_signalled(signal.SIGKILL)), sample=True),
        Fault("daemon: SIGABRT, as by the watchdog", _away(_signalled(signal.SIGABRT))),
        Fault("daemon: upgrade", _daemon_upgrade, copy=True, sample=True),
        Fault("runner: upgrade", _runner_upgrade, copy=True),
        Fault("runner: SIGKILL", _runner_dies(zygote_too=False), sample=True),
        Fault("runner and zygote: SIGKILL", _runner_dies(zygote_too=True), sample=True),
        Fault("host: reboot", _reboot, sample=True),
        Fault("task: out of memory", _mute, elsewhere="needs a cgroup with memory: `make test-qemu`"),
        Fault("task: fork bomb", _ended_by_force("bomb"), sample=True),
        Fault("task: ignores SIGTERM", _ended_by_force("stubborn")),
        Fault("task: closes its output", _mute, sample=True),
        Fault("task: fills the disk", _filler, small_disk=True),
        Fault("task: writes much log", _gusher, lambda sizes: {"spool_max_mb": 2_000}, sample=True),
        Fault("task: leaves a process behind", _leaver, sample=True),
        Fault("many tasks at once", _crowd, lambda sizes: {"concurrency": sizes.crowd + 1}, sample=True),
    )
}
