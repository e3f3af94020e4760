"""Runs one fault with one seed, and judges it."""

from __future__ import annotations

import shutil
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from faults import checks
from faults.catalogue import Fault, Unavailable, small_spool
from faults.scene import Scene
from faults.world import DAG_ID, World
from harness.agent import AgentProcess
from harness.processes import ProcessError
from harness.waiting import WaitTimeoutError, wait_until


@dataclass
class Outcome:
    """What came of one run."""

    fault: str
    carrier: str
    database: str
    seed: int
    recovered_seconds: float | None = None
    """From the end of the fault until the work went on."""
    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    """Where the time went."""
    skipped: str | None = None
    findings: checks.Findings = field(default_factory=checks.Findings)

    @property
    def violated(self) -> bool:
        """Whether anything is not as it must be."""
        return bool(self.findings.lines())

    def as_dict(self) -> dict[str, Any]:
        """Return it for a JSON file."""
        return asdict(self) | {"violated": self.violated}


def run_fault(world: World, fault: Fault, seed: int, *, carrier: str | None = None) -> Outcome:
    """Let one fault happen; never raises for what comes of it."""
    outcome = Outcome(fault.name, carrier or "default", world.database, seed)
    found = outcome.findings
    root = world.root / "runs" / f"{fault.name}-{seed}-{outcome.carrier}"
    shutil.rmtree(root, ignore_errors=True)
    began = time.monotonic()
    logs = world.site.logs
    sizes = checks.log_sizes(logs)
    names = [world.name(number) for number in range(1, fault.agents + 1)]
    try:
        with ExitStack() as stack:
            scene = stack.enter_context(
                Scene(
                    world,
                    root,
                    seed=f"{fault.name}/{seed}",
                    carrier=carrier,
                    agents=fault.agents,
                    through=fault.through,
                    variables=fault.variables(seed, stack.enter_context(_folder())) if fault.variables else None,
                    tasks_too=fault.tasks_too(seed),
                    state_dir=stack.enter_context(small_spool()) if fault.small_spool else None,
                )
            )
            _act(scene, fault, outcome)
            with _phase(outcome, "delivery"):
                checks.check_delivery(scene, found)
            checks.check_tasks(scene, found)
            checks.check_logs(scene, found, lines=True)
            with _phase(outcome, "stop"):
                checks.check_end(scene, found)
        checks.check_server(logs, sizes, found)
    except Unavailable as reason:
        outcome.skipped = str(reason)
    except (WaitTimeoutError, ProcessError, AssertionError) as error:
        found.other.append(str(error))
    except Exception:  # noqa: BLE001 -- one run that cannot be judged must not end the others
        found.other.append(f"the run itself failed: {traceback.format_exc()}")
    outcome.seconds = time.monotonic() - began
    if outcome.violated:
        for name in names:
            world.retire(name)
    elif not outcome.skipped:
        shutil.rmtree(root, ignore_errors=True)
    return outcome


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="edge-faults-") as folder:
        yield Path(folder)


@contextmanager
def _phase(outcome: Outcome, name: str) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    finally:
        outcome.phases[name] = round(time.monotonic() - began, 1)


def _act(scene: Scene, fault: Fault, outcome: Outcome) -> None:
    with _phase(outcome, "begin"):
        scene.begin()
    scene.pause(0, 1.5)
    with _phase(outcome, "fault"):
        fault.act(scene)
    # Half-open connections stay; whatever else there was is over.
    before, healed_at = scene.progress(), time.monotonic()
    if not fault.harmless:
        scene.go()
        _wait_for_end(scene)
        checks.check_agreement(scene, outcome.findings)
        checks.check_logs(scene, outcome.findings, lines=False)
        healed_at = time.monotonic()
        scene.begin_another()
        before = scene.progress()
    if fault.dispatches:
        scene.go()
    deadline = scene.seconds(90)
    wait_until(
        lambda: _recovered(scene, before, dispatches=fault.dispatches),
        seconds=deadline,
        what="the work to go on",
        poll_seconds=0.05,
        seen=lambda: "; ".join(agent.tail(2) for agent in scene.agents),
    )
    outcome.recovered_seconds = time.monotonic() - healed_at
    scene.go()
    with _phase(outcome, "end"):
        _wait_for_end(scene)


def _wait_for_end(scene: Scene) -> None:
    wait_until(
        lambda: scene.world.run_ended(scene.run_id),
        seconds=scene.seconds(120),
        what="the run to end",
        poll_seconds=0.2,
        seen=lambda: _states(scene),
    )


def _recovered(scene: Scene, before: tuple[Any, ...], *, dispatches: bool) -> bool:
    now = scene.progress()
    return now[0] != before[0] if dispatches else now != before


def _states(scene: Scene) -> str:
    instances = scene.world.site.api.task_instances(DAG_ID, scene.run_id)
    jobs = scene.world.rows(
        "SELECT task_id, map_index, try_number, state, fence, outcome, agent_name FROM edge_agent_job "
        "WHERE run_id = :run ORDER BY queued_at",
        {"run": scene.run_id},
    )
    return f"{ {ti.label: ti.state for ti in instances} }, jobs {jobs}, agents {[_last(a) for a in scene.agents]}"


def _last(agent: AgentProcess) -> str:
    return agent.tail(2)


def folder_of(world: World, outcome: Outcome) -> Path:
    """Return where the traces of a run are."""
    return world.root / "runs" / f"{outcome.fault}-{outcome.seed}-{outcome.carrier}"
