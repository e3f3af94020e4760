"""The faults: each does its harm to a scene at random moments, and returns when the harm is over."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from faults.proxy import DIRECTIONS
from faults.scene import Scene
from faults.wire import Direction
from harness.waiting import WaitTimeoutError, wait_until

FRAMES: dict[Direction, tuple[str, ...]] = {
    "up": ("hello", "accept", "started", "log", "result", "status"),
    "down": ("welcome", "offer", "accept_ack", "log_ack", "result_ack"),
}
"""The frames of a job's life, at each of which connections are cut."""

TRAPS_PER_RUN = 4
SPOOL_BYTES = 8 * 1024 * 1024
CLOCK_SECONDS = 600
_SHIFT_CLOCK = Path(__file__).with_name("shift_clock.c")


class Unavailable(Exception):
    """This machine cannot do that to itself. The message says what it lacks."""


@dataclass(frozen=True)
class Fault:
    """One row of the matrix."""

    name: str
    act: Callable[[Scene], None]
    agents: int = 1
    through: bool = False
    """Whether the tasks' own calls to Airflow go through the proxy as well."""
    variables: Callable[[int, Path], dict[str, str]] | None = None
    """Makes the environment of the agents, given the seed and a folder for what that takes."""
    tasks_too: Callable[[int], bool] = lambda _seed: True
    """Whether tasks have those variables as well, by seed."""
    small_spool: bool = False
    """Whether the agent's state is on a small disk of its own."""
    dispatches: bool = False
    """Recovered only when Airflow hands out new work, not with the first sign of life."""
    harmless: bool = True
    """Whether no task may notice. Else tasks may fail, in their bodies and in Airflow alike, and the next run is whole.
    """
    databases: tuple[str, ...] = ("postgresql", "sqlite")


# The network


def _cut(scene: Scene) -> None:
    for _ in range(scene.random.randint(3, 6)):
        scene.proxy.cut(reset=scene.random.random() < 0.5)
        scene.pause(0.05, 1.5)


def _cut_bytes(direction: Direction) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        for _ in range(4):
            cuts = scene.proxy.cuts
            scene.proxy.cut_after(direction, scene.random.randint(1, 3_000))
            # An idle link may stay below the count for long.
            _within(scene, 8, lambda cuts=cuts: scene.proxy.cuts > cuts)  # type: ignore[misc]
        scene.proxy.heal()

    return act


def _cut_frames(direction: Direction, *, deliver: bool) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        for frame in scene.random.sample(FRAMES[direction], TRAPS_PER_RUN):
            trap = scene.proxy.cut_at(direction, frame, deliver=deliver, skip=scene.random.randrange(2))
            if frame in ("hello", "welcome"):
                scene.proxy.cut()
                # The one that is skipped must happen as well.
                _within(scene, 3, trap.sprung.is_set)
                if not trap.sprung.is_set():
                    scene.proxy.cut()
            _within(scene, 4, trap.sprung.is_set)
        scene.proxy.heal()

    return act


def _lose_answers(scene: Scene) -> None:
    for _ in range(4):
        _within(scene, 10, scene.proxy.lose_answer().sprung.is_set)
        scene.pause(0, 1)
    scene.proxy.heal()


def _refuse(scene: Scene) -> None:
    scene.proxy.refuse(listening=scene.random.random() < 0.5)
    scene.pause(1, 8)
    scene.proxy.heal()


def _delay(scene: Scene) -> None:
    for direction in DIRECTIONS:
        scene.proxy.delay(direction, 0.1, scene.random.uniform(0.2, 1.0))
    scene.pause(6, 9)
    scene.proxy.heal()


def _single_bytes(scene: Scene) -> None:
    for direction in DIRECTIONS:
        scene.proxy.single_bytes(direction)
    # With whole connections made in this way, too.
    scene.proxy.cut()
    scene.pause(6, 9)
    scene.proxy.heal()


def _slow_reader(scene: Scene) -> None:
    for direction in DIRECTIONS:
        scene.proxy.throttle(direction, scene.random.uniform(4_000, 12_000))
    scene.pause(6, 9)
    scene.proxy.heal()


def _half_open(scene: Scene) -> None:
    new_too = scene.random.random() < 0.3
    scene.proxy.half_open(new_too=new_too)
    if new_too:
        scene.pause(2, 6)
        scene.proxy.heal()


def _repeat(scene: Scene) -> None:
    scene.proxy.repeat(0.5)
    scene.pause(2, 4)
    scene.proxy.cut()
    scene.pause(4, 6)
    scene.proxy.heal()


def _reorder(scene: Scene) -> None:
    for _ in range(3):
        scene.proxy.reorder()
        scene.pause(1, 3)


def _late_start(scene: Scene) -> None:
    """Let a job begin only after it was taken from its agent: cut off since the confirmation, slow to start."""
    first = scene.agents[0]
    trap = scene.proxy.cut_at(
        "down",
        "accept_ack",
        deliver=True,
        bar=r"^(POST|GET) /edge-agents/",
        hold=r"^PATCH \S*/execution/task-instances/[^ ]+/run ",
    )
    _within(scene, 20, trap.sprung.is_set)
    if not trap.sprung.is_set():
        scene.proxy.heal()
        return
    # What is confirmed now has not begun, and is given up.
    _within(scene, 15, lambda: _jobs(scene, "state = 'queued' AND fence > 0") > 0)
    given_up = _jobs(scene, "state = 'queued' AND fence > 0")
    scene.proxy.release()
    scene.pause(1, 2)
    if given_up and scene.random.random() < 0.5:
        # Somebody else gets it, and is refused by Airflow.
        scene.add_agent()
        _within(scene, 30, lambda: _jobs(scene, "outcome = 'superseded'") > 0)
    scene.proxy.heal()
    first.wait_for_log("connected", seconds=scene.seconds(60), after=len(first.log_text()))


def _jobs(scene: Scene, condition: str) -> int:
    statement = f"SELECT count(*) FROM edge_agent_job WHERE run_id = :run AND {condition}"
    return int(scene.world.rows(statement, {"run": scene.run_id})[0][0])


def _storm(scene: Scene) -> None:
    for _ in range(6):
        scene.random.choice((_cut, _delay_briefly, _lose_one, _reorder_once, _refuse_briefly))(scene)
        scene.proxy.repeat(0.3)
        scene.pause(0, 1)
    scene.proxy.heal()


def _delay_briefly(scene: Scene) -> None:
    scene.proxy.delay(scene.random.choice(DIRECTIONS), 0.0, 0.5)


def _lose_one(scene: Scene) -> None:
    scene.proxy.lose_answer()


def _reorder_once(scene: Scene) -> None:
    scene.proxy.reorder()


def _refuse_briefly(scene: Scene) -> None:
    scene.proxy.refuse(listening=scene.random.random() < 0.5)
    scene.pause(0.1, 1)
    scene.proxy.heal()


# The programs


def _api_server(scene: Scene) -> None:
    with scene.world.in_hand():
        scene.world.site.restart_component("api-server", kill=True, down_seconds=scene.random.uniform(0, 3))


def _scheduler(scene: Scene) -> None:
    with scene.world.in_hand():
        scene.world.site.restart_component("scheduler", kill=True, down_seconds=scene.random.uniform(0, 3))


def _postgres(scene: Scene) -> None:
    assert scene.world.postgres is not None
    scene.world.postgres.restart(down_seconds=scene.random.uniform(0, 3))


def _agent(scene: Scene) -> None:
    for _ in range(2):
        agent = scene.agents[0]
        agent.kill()
        scene.pause(0, 3)
        position = len(agent.log_text())
        agent.start()
        agent.wait_for_log("connected", seconds=scene.seconds(40), after=position)
        scene.pause(0, 1.5)


def _agent_and_link(scene: Scene) -> None:
    scene.proxy.half_open()
    _agent(scene)
    scene.proxy.cut()


def _clone(scene: Scene) -> None:
    first = scene.agents[0]
    clone = scene.make_agent(first.name, scene.root / "clone", credential=first.credential_file.read_text())
    with clone:
        clone.start()
        clone.wait_for_log(r"asking again", seconds=scene.seconds(40))
        scene.proxy.cut()
        scene.pause(1, 4)
        jobs = clone.state_dir / "jobs"
        if list(jobs.iterdir()) or not first.running:
            raise AssertionError(f"the clone has taken over: {clone.tail(3)}")


# The machine


def _clock_variables(seed: int, folder: Path) -> dict[str, str]:
    library = folder / "shift_clock.so"
    compiler = shutil.which("cc")
    if compiler is None:
        raise Unavailable(
            "a wall clock can only be shifted with a C compiler (on Debian: apt-get install gcc libc6-dev)"
        )
    made = subprocess.run(
        [compiler, "-O2", "-fPIC", "-shared", "-o", library, _SHIFT_CLOCK, "-ldl"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode != 0:
        raise Unavailable(f"the library that shifts the clock cannot be compiled: {made.stderr.strip()[-300:]}")
    shift = CLOCK_SECONDS if seed % 2 else -CLOCK_SECONDS
    return {"LD_PRELOAD": str(library), "SHIFT_CLOCK_SECONDS": str(shift)}


def _clock_of_tasks(seed: int) -> bool:
    # Ahead, only the daemon's: Airflow counts the delay of a retry from the end that the task itself has told, and
    # would begin the second try ten minutes later.
    return seed % 2 == 0


def _clock(scene: Scene) -> None:
    scene.agents[0].wait_for_log("clock differs from the server's", seconds=scene.seconds(10))
    _cut(scene)


def _disk_full(scene: Scene) -> None:
    ballast = scene.agents[0].state_dir / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        for size in (65_536, 512, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)
    scene.pause(2, 5)
    ballast.unlink()


@contextmanager
def small_spool() -> Iterator[Path]:
    """Mount a small disk in memory and return where.

    :raises Unavailable: when we may not mount.
    """
    with tempfile.TemporaryDirectory(prefix="edge-spool-") as folder:
        options = f"size={SPOOL_BYTES},mode=0700"
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "edge-spool", folder], capture_output=True, check=False
        )
        if mounted.returncode != 0:
            raise Unavailable(f"a small disk cannot be mounted here ({mounted.stderr.decode().strip()}); needs root")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def _within(scene: Scene, seconds: float, condition: Callable[[], bool]) -> None:
    """Wait for a part of a fault that need not come: without it, the run is just a milder one."""
    with contextlib.suppress(WaitTimeoutError):
        wait_until(condition, seconds=scene.seconds(seconds), what="the fault", poll_seconds=0.02)


_POSTGRESQL = ("postgresql",)

FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in (
        Fault("none", lambda scene: time.sleep(1)),
        Fault("cut", _cut),
        Fault("cut-bytes-up", _cut_bytes("up")),
        Fault("cut-bytes-down", _cut_bytes("down")),
        Fault("cut-before-frame-up", _cut_frames("up", deliver=False)),
        Fault("cut-after-frame-up", _cut_frames("up", deliver=True)),
        Fault("cut-before-frame-down", _cut_frames("down", deliver=False)),
        Fault("cut-after-frame-down", _cut_frames("down", deliver=True)),
        Fault("lose-answer", _lose_answers),
        Fault("refuse", _refuse),
        Fault("delay", _delay),
        Fault("single-bytes", _single_bytes),
        Fault("slow-reader", _slow_reader),
        Fault("half-open", _half_open),
        Fault("repeat", _repeat),
        Fault("reorder", _reorder),
        Fault("storm", _storm),
        Fault("storm-two-agents", _storm, agents=2),
        Fault("refuse-all", _refuse, through=True),
        Fault("late-start", _late_start, through=True),
        Fault("api-server-kill", _api_server),
        Fault("scheduler-kill", _scheduler, dispatches=True),
        Fault("postgres-restart", _postgres, dispatches=True, databases=_POSTGRESQL),
        Fault("agent-kill", _agent),
        Fault("agent-kill-half-open", _agent_and_link),
        Fault("clone", _clone),
        Fault("clock", _clock, variables=_clock_variables, tasks_too=_clock_of_tasks),
        Fault("disk-full", _disk_full, small_spool=True, harmless=False),
    )
}
