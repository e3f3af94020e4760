"""One partition: eight tasks run, the link is cut, two of them end, the link comes back; and what came of it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import httpx

from harness.rest import RestError
from harness.waiting import WaitTimeoutError, wait_until
from outage.clocks import Clocks
from outage.sides import DAG_ID, OurSide, Side
from outage.watch import Watch

Cut = Literal["refuse", "blackhole"]

MEMBERS = 8
FINISHED_INSIDE = (0, 1)
"""The tasks that end while the link is cut."""

RESULT_SECONDS = 5.0
"""How long after the link is back their results may take to be in Airflow."""

_QUICK_POLL_SECONDS = 0.1


@dataclass
class Verdict:
    """What became of one side's tasks and of what ran them."""

    label: str
    running_at_cut: int = 0
    finished_inside: int = 0
    killed_inside: int = 0
    """Bodies that were gone before their end when the link came back."""
    failed_inside: int = 0
    """Tasks that Airflow took for failed or to be tried again when the link came back."""
    results_seconds: float | None = None
    """From the link's return until state and XCom of the tasks that ended inside were in Airflow, as those of their
    first try; ``None``: never."""
    lost: int = 0
    """Tasks whose first body's work did not become a success in Airflow."""
    doubled: int = 0
    """Tasks whose body ran more than once."""
    overlapping: int = 0
    """Tasks with two bodies at the same time."""
    log_holes: int = 0
    """Tasks whose log in Airflow has not each line that was written."""
    states: dict[str, int] = field(default_factory=dict)
    """How many tasks are in which state at the end."""
    run_state: str = ""
    worker: str = ""
    """What Airflow showed of the worker, one after the other."""
    worker_end: str = ""
    says: str = ""
    """What the worker's own command said in the middle of it."""
    changes: list[dict[str, Any]] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    """What is not as it must be; of our side only."""


class Trial:
    """One side in the partition."""

    def __init__(self, side: Side, clocks: Clocks, slack: float) -> None:
        self.side = side
        self.verdict = Verdict(side.label)
        self._clocks = clocks
        self._slack = slack
        self.folder = side.root / "outside"
        self.folder.mkdir(parents=True)
        self.run_id = side.site.api.trigger_dag(
            DAG_ID, conf={"dir": str(self.folder), "line_seconds": clocks.line_seconds}
        )
        self.watch = Watch(side, self.run_id, self.folder)
        self.watch.start()
        self._back_at = 0.0

    @property
    def ours(self) -> bool:
        """Whether it must do all that we promise."""
        return isinstance(self.side, OurSide)

    def wait_begun(self) -> None:
        """Wait until every task runs, and Airflow has noticed."""
        self._wait(
            lambda: (
                len(self.watch.bodies) == MEMBERS
                and [self.watch.state(number) for number in range(MEMBERS)] == ["running"] * MEMBERS
            ),
            seconds=180,
            what=f"{MEMBERS} tasks of {self.side.label} to run",
        )

    def cut(self, way: Cut) -> None:
        """Cut the link."""
        self.verdict.running_at_cut = sum(body.left_at is None for body in self.watch.bodies)
        self.watch.changes.clear()
        self.watch.cut_at = time.time()
        if way == "refuse":
            self.side.proxy.refuse()
        else:
            self.side.proxy.black_hole()

    def let_end(self, *numbers: int) -> None:
        """Let these tasks end."""
        for number in numbers:
            (self.folder / f"go-{number}").touch()

    def ask_worker(self) -> None:
        """Note what the worker itself says of the outage."""
        self.verdict.says = self.side.worker_says()

    def heal(self) -> None:
        """Bring the link back."""
        verdict, watch = self.verdict, self.watch
        verdict.finished_inside = sum(body.ended_at is not None for body in watch.bodies)
        verdict.killed_inside = sum(body.gone_at is not None for body in watch.bodies)
        verdict.failed_inside = sum(watch.state(number) != "running" for number in range(MEMBERS))
        watch.poll_seconds = _QUICK_POLL_SECONDS
        self.side.proxy.heal()
        self._back_at = time.monotonic()
        self._at_return = time.time() - watch.cut_at

    def wait_results(self) -> None:
        """Wait until what ended inside is in Airflow, state and XCom."""
        seconds = 90 * self._slack if self.ours else 15

        def there() -> bool:
            return all(
                self.watch.succeeded_at_once(number) and self._result(number) == number for number in FINISHED_INSIDE
            )

        try:
            self._wait(there, seconds=seconds, what="the results", poll_seconds=0.05)
        except WaitTimeoutError:
            return
        self.verdict.results_seconds = time.monotonic() - self._back_at

    def wait_end(self) -> None:
        """Let all tasks end, and wait until Airflow has nothing more to expect."""
        worker = self.side.worker
        if worker is not None and not worker.running:
            self.verdict.findings += ["the worker ended inside of the outage"] if self.ours else []
            self.verdict.worker_end = f"ended with {worker.exit_code}, started again when the link was back"
            self.side.start_worker()
        self.let_end(*range(MEMBERS))
        seconds = 90 * self._slack if self.ours else self._clocks.retry_delay_seconds + 90 * self._slack
        try:
            self.verdict.run_state = self.side.site.api.wait_for_run(DAG_ID, self.run_id, seconds=seconds)
        except WaitTimeoutError:
            self.verdict.run_state = f"still running {seconds:.0f} s later"

    def judge(self) -> Verdict:
        """Say what came of it."""
        verdict, watch = self.verdict, self.watch
        verdict.log_holes = self._log_holes()
        watch.stop()
        for number in range(MEMBERS):
            bodies = watch.bodies_of(number)
            state = watch.state(number)
            verdict.states[state] = verdict.states.get(state, 0) + 1
            verdict.lost += not (watch.succeeded_at_once(number) and bodies and bodies[0].ended_at is not None)
            verdict.doubled += len(bodies) > 1
        verdict.overlapping = watch.overlapping()
        seen = [change.after for change in watch.changes if change.what == "worker in Airflow"]
        verdict.worker = " → ".join(seen)
        verdict.changes = [asdict(change) for change in watch.changes]
        if not verdict.worker_end:
            code = self.side.end_worker()
            verdict.worker_end = (
                "lived on; killed after it did not end" if code is None else f"lived on; ended with {code}"
            )
        if self.ours:
            self._check()
        return verdict

    def _check(self) -> None:
        verdict = self.verdict
        seconds = verdict.results_seconds
        expectations = {
            f"{verdict.running_at_cut} of {MEMBERS} tasks ran when the link was cut": verdict.running_at_cut == MEMBERS,
            f"{verdict.finished_inside} tasks ended inside": verdict.finished_inside == len(FINISHED_INSIDE),
            f"{verdict.killed_inside} bodies were killed inside": not verdict.killed_inside,
            f"Airflow gave {verdict.failed_inside} tasks up": not verdict.failed_inside,
            f"{verdict.lost} tasks are lost": not verdict.lost,
            f"{verdict.doubled} tasks ran twice": not verdict.doubled,
            f"the log of {verdict.log_holes} tasks has holes": not verdict.log_holes,
            f"the run is {verdict.run_state}": verdict.run_state == "success",
            f"the agent {verdict.worker_end}": verdict.worker_end.endswith("ended with 0"),
            f"nothing is watched any more: {self.watch.fault}": self.watch.fault is None,
        }
        verdict.findings += [what for what, holds in expectations.items() if not holds]
        if seconds is None:
            verdict.findings.append("the results did not come")
        elif seconds > RESULT_SECONDS * self._slack:
            limit = RESULT_SECONDS * self._slack
            verdict.findings.append(f"the results came {seconds:.1f} s after the link, at most {limit:g} s")

    def _result(self, number: int) -> object:
        try:
            value = self.side.site.api.xcom(DAG_ID, self.run_id, "member", map_index=number)
        except (httpx.TransportError, RestError):
            return None
        return value.get("number") if isinstance(value, dict) else None

    def _log_holes(self) -> int:
        return sum(not self._log_whole(number) for number in range(MEMBERS))

    def _log_whole(self, number: int) -> bool:
        """Compare the lines of a task's last try in Airflow with the count that the task returned."""
        api = self.side.site.api
        instance = self.watch.instances.get(number)
        if instance is None or instance.state != "success":
            return False

        def shown() -> bool:
            value = api.xcom(DAG_ID, self.run_id, "member", map_index=number)
            wanted = list(range(value["lines"]))
            events = [line.event for line in api.log(instance)]
            return [int(match[1]) for event in events if (match := re.match(r"line (\d+)$", event))] == wanted

        try:
            self._wait(shown, seconds=30 if self.ours else 10, what="the whole log", poll_seconds=0.5)
        except (WaitTimeoutError, RestError, httpx.TransportError):
            return False
        return True

    def _wait(self, condition: Callable[[], bool], *, seconds: float, what: str, poll_seconds: float = 0.2) -> None:
        wait_until(
            lambda: self.watch.fault is not None or condition(),
            seconds=seconds,
            what=what,
            poll_seconds=poll_seconds,
            seen=lambda: {number: instance.state for number, instance in self.watch.instances.items()},
        )
        if self.watch.fault is not None:
            raise WaitTimeoutError(f"{what}: {self.watch.fault}")


def run(
    sides: Sequence[Side], clocks: Clocks, way: Cut, *, slack: float, progress: Callable[[str], None]
) -> list[Verdict]:
    """Cut the links of all sides at the same time, bring them back at the same time, and judge.

    :param slack: deadlines for what is to be seen afterwards are multiplied by this.
    """
    trials = [Trial(side, clocks, slack) for side in sides]
    for trial in trials:
        trial.wait_begun()
    progress(f"{MEMBERS} tasks run on each side; the link is cut ({way}) for {clocks.partition_seconds:g} s")
    for trial in trials:
        trial.cut(way)
    cut_at = time.monotonic()

    def at(part: float) -> None:
        time.sleep(max(0.0, cut_at + part * clocks.partition_seconds - time.monotonic()))

    at(0.02)
    for trial in trials:
        trial.watch.poll_seconds = min(2.0, clocks.partition_seconds / 100)
    for part, number in zip((1 / 3, 1 / 2), FINISHED_INSIDE, strict=True):
        at(part)
        progress(f"task {number} may end")
        for trial in trials:
            trial.let_end(number)
    at(3 / 4)
    for trial in trials:
        trial.ask_worker()
    at(1)
    for trial in trials:
        trial.heal()
    progress("the link is back")
    for trial in trials:
        trial.wait_results()
    for trial in trials:
        trial.wait_end()
    return [trial.judge() for trial in trials]
