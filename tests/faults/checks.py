"""What must be true after every run, whatever has happened in it."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from faults.scene import Scene
from faults.world import DAG_ID
from harness.agent import AgentProcess
from harness.waiting import WaitTimeoutError, wait_until

EXPECTED: dict[str, tuple[str, int]] = {
    **{f"quick[{number}]": ("success", 1) for number in range(8)},
    **{f"late[{number}]": ("success", 1) for number in range(2)},
    "slow": ("success", 1),
    "chatty": ("success", 1),
    "second_try": ("success", 2),
    "doomed": ("failed", 1),
}
"""The true end of every task instance: its state and its last try."""

_OUR_FAULTS = re.compile(r"A batch of agent \S+ failed\.$|The dispatcher failed; it goes on", re.MULTILINE)
_AGENT_FAULTS = re.compile(r"Traceback|internal error|a piece of work failed|ended unexpectedly")


@dataclass
class Findings:
    """Violations of one run, a line each."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return all of them, each with its kind."""
        kinds = {"lost": self.lost, "doubled": self.doubled, "log": self.logs, "leaked": self.leaked, "": self.other}
        return [f"{kind}: {line}" if kind else line for kind, found in kinds.items() for line in found]


def check_tasks(scene: Scene, found: Findings) -> None:
    """Compare Airflow's states with the truth, and both with what the bodies wrote."""
    instances = {ti.label: ti for ti in scene.world.site.api.task_instances(DAG_ID, scene.run_id)}
    for label, (state, try_number) in EXPECTED.items():
        ti = instances.get(label)
        seen = (ti.state, ti.try_number) if ti else None
        if seen != (state, try_number):
            found.lost.append(f"{label} is {seen}, not {(state, try_number)}{_why(scene, label)}")
    notes = scene.notes()
    for line, count in notes.items():
        if count > 1:
            found.doubled.append(f"{line!r} {count} times")
    for line in set(_expected_notes()) - set(notes):
        found.lost.append(f"never ran: {line!r}")
    for line in set(notes) - set(_expected_notes()):
        found.doubled.append(f"ran, but should not: {line!r}")


def check_agreement(scene: Scene, found: Findings) -> None:
    """Where tasks may fail: Airflow calls one a success if and only if its body came to its end, and none ran twice."""
    instances = scene.world.site.api.task_instances(DAG_ID, scene.run_id)
    notes = scene.notes()
    for ti in instances:
        ended = notes[f"{ti.task_id} {ti.map_index} {ti.try_number} ended"] > 0
        if ti.state not in {"success", "failed", "upstream_failed"} or (ti.state == "success") != ended:
            found.lost.append(f"{ti.label} is {ti.state}, its body {'ended' if ended else 'did not end'}")
    found.doubled += [f"{line!r} {count} times" for line, count in notes.items() if count > 1]


def _why(scene: Scene, label: str) -> str:
    task, _, rest = label.partition("[")
    rows = scene.world.rows(
        "SELECT agent_name, fence, state, outcome, detail FROM edge_agent_job "
        "WHERE run_id = :run AND task_id = :task AND map_index = :index ORDER BY queued_at",
        {"run": scene.run_id, "task": task, "index": int(rest.rstrip("]")) if rest else -1},
    )
    return f"; its jobs: {[tuple(row) for row in rows]}"


def _expected_notes() -> Counter[str]:
    lines: Counter[str] = Counter()
    for label, (state, tries) in EXPECTED.items():
        task, _, rest = label.partition("[")
        index = rest.rstrip("]") or "-1"
        for number in range(1, tries + 1):
            lines[f"{task} {index} {number} began"] += 1
        if state == "success":
            lines[f"{task} {index} {tries} ended"] += 1
    return lines


def check_delivery(scene: Scene, found: Findings) -> None:
    """Wait until the agents have delivered everything and both sides agree that nothing is held."""
    for agent in scene.agents:
        try:
            wait_until(
                lambda agent=agent: not _held(agent.state_dir / "jobs"),  # type: ignore[misc]
                seconds=scene.seconds(60),
                what="the agent to deliver and forget its jobs",
            )
        except WaitTimeoutError:
            found.leaked.append(f"agent {agent.name} still holds {_held(agent.state_dir / 'jobs')}")
    held = "SELECT id, task_id, state, agent_name FROM edge_agent_job WHERE state <> 'finished' AND run_id = :run"
    try:
        wait_until(
            lambda: not scene.world.rows(held, {"run": scene.run_id}),
            seconds=scene.seconds(30),
            what="the server's jobs to end",
        )
    except WaitTimeoutError:
        found.leaked += [f"job at the server: {row}" for row in scene.world.rows(held, {"run": scene.run_id})]
    row = "SELECT state, slots_used FROM edge_agent WHERE name = :name"
    for agent in scene.agents:
        try:
            wait_until(
                lambda agent=agent: scene.world.rows(row, {"name": agent.name}) == [("idle", 0)],  # type: ignore[misc]
                seconds=scene.seconds(45),
                what="the agent to be idle at the server",
            )
        except WaitTimeoutError:
            found.leaked.append(f"agent {agent.name} is {scene.world.rows(row, {'name': agent.name})} at the server")
        if agent.job_processes():
            found.leaked.append(f"processes of jobs: {[process.cmdline() for process in agent.job_processes()]}")


def _held(jobs: Path) -> list[str]:
    return sorted(path.name for path in jobs.iterdir()) if jobs.exists() else []


def check_logs(scene: Scene, found: Findings, *, lines: bool) -> None:
    """Compare every log byte by byte with the file that the agent had, and one with what its task wrote."""
    jobs = scene.world.rows(
        "SELECT id, task_id, map_index, try_number, outcome, log_bytes FROM edge_agent_job WHERE run_id = :run",
        {"run": scene.run_id},
    )
    for job_id, task, index, number, outcome, log_bytes in jobs:
        kept = next((log for kept in scene.kept if (log := kept.read(job_id)) is not None), None)
        pieces = scene.world.rows(f"SELECT \"offset\", data FROM edge_agent_log WHERE job_id = '{job_id}' ORDER BY 1")
        stored = b"".join(bytes(data) for _, data in pieces)
        name = f"{task}[{index}] try {number} ({outcome})"
        if kept is None and not stored:
            if outcome == "finished":
                found.logs.append(f"{name}: no log anywhere")
        elif kept != stored:
            found.logs.append(f"{name}: {len(kept or b'')} bytes at the agent, {len(stored)} at the server")
        elif outcome == "finished" and log_bytes != len(stored):
            found.logs.append(f"{name}: the result speaks of {log_bytes} bytes, {len(stored)} are stored")
    if lines and "slow -1 1 ended" in scene.notes():
        ti = scene.world.site.api.task_instance(DAG_ID, scene.run_id, "slow")
        shown = [line.event for line in scene.world.site.api.log(ti) if line.event.startswith("line ")]
        written = (scene.notes_dir / "lines").read_text().splitlines()
        if [line.rstrip() for line in shown] != [line.rstrip() for line in written]:
            found.logs.append(f"slow: wrote {len(written)} lines, Airflow shows {len(shown)} or other ones")


def check_end(scene: Scene, found: Findings) -> None:
    """Stop the agents; nothing of them may be left, and none may have met with what it did not foresee."""
    for agent in scene.agents:
        code = agent.stop(scene.seconds(30)) if agent.running else agent.process.exit_code if agent.process else None
        if code != 0:
            found.other.append(f"agent {agent.name} ended with {code}: {agent.tail(2)}")
        left = _left_behind(scene, agent)
        if left:
            found.leaked.append(f"processes of agent {agent.name} are left: {left}")
        for match in _AGENT_FAULTS.finditer(agent.log_text()):
            found.other.append(f"agent {agent.name} logs {match.group()!r}, see {agent.log}")
            break


def _left_behind(scene: Scene, agent: AgentProcess) -> list[str]:
    def find() -> list[str]:
        found = []
        for process in scene.world.keeper.processes():
            try:
                places = [process.cwd(), *process.cmdline()]
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            if any(str(folder) in place for place in places for folder in (agent.root, agent.state_dir)):
                found.append(json.dumps(places))
        return found

    try:
        wait_until(lambda: not find(), seconds=scene.seconds(15), what="the agent's processes to end")
    except WaitTimeoutError:
        return find()
    return []


def check_server(logs: Path, before: dict[str, int], found: Findings) -> None:
    """Look for faults of ours that Airflow's components have logged since."""
    for path in sorted(logs.glob("*.log")):
        with path.open("rb") as file:
            file.seek(before.get(path.name, 0))
            text = file.read().decode(errors="replace")
        for match in _OUR_FAULTS.finditer(text):
            found.other.append(f"{path.name}: {match.group()!r}, see {path}")


def log_sizes(logs: Path) -> dict[str, int]:
    """Return where the logs of Airflow's components end now."""
    return {path.name: path.stat().st_size for path in logs.glob("*.log")}
