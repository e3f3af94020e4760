"""Cut the link to Airflow under running tasks, for half an hour: ``make test-outage``."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import signal
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from harness.postgres import Postgres, PostgresError
from harness.processes import Keeper, ProcessError
from harness.rest import RestError
from harness.site import SiteError
from harness.waiting import WaitTimeoutError
from outage.clocks import FULL_MINUTES, Clocks
from outage.partition import Cut, Verdict, run
from outage.report import story, table
from outage.sides import PEER_ENVIRONMENT, PROJECT, OurSide, PeerSide, Side


@dataclass(frozen=True, slots=True)
class Plan:
    """One partition."""

    label: str
    clocks: Clocks
    cut: Cut
    edge3: bool = False


SAMPLE = (
    Plan("all clocks shortened, black hole", Clocks(45, 45 / (FULL_MINUTES * 60)), "blackhole"),
    Plan("tokens of 10 s, refused", Clocks(40, 1, 10), "refuse"),
)
"""What CI has time for: every clock in proportion, and the link cut for longer than a token lives, and nothing else."""

LEAST_MINUTES, MOST_MINUTES = 0.25, 24 * 60.0


def main() -> int:
    """Do what the command line asks for; return 1 if anything is not as it must be."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    arguments = _arguments()
    plans = SAMPLE if arguments.sample else (_plan(arguments),)
    folder = Path(tempfile.mkdtemp(prefix="edge-outage-"))
    verdicts: list[Verdict] = []
    began = time.monotonic()
    fault: str | None = None

    def progress(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {text}", flush=True)

    try:
        with ExitStack() as stack:
            progress("starting an Airflow for each side")
            postgres = stack.enter_context(Postgres(durable=True))
            keeper = stack.enter_context(Keeper())
            trials = [
                (plan, _boot(stack, folder / f"plan-{number}", plan, postgres, keeper))
                for number, plan in enumerate(plans)
            ]
            verdicts = _run(trials, arguments.slack, progress)
    except KeyboardInterrupt:
        return 130
    except (SiteError, ProcessError, PostgresError, RestError, WaitTimeoutError) as error:
        fault = str(error)
    findings = [f"{verdict.label}: {line}" for verdict in verdicts for line in verdict.findings]
    findings += [fault] if fault else []
    _tell(verdicts, plans, arguments, time.monotonic() - began)
    for line in findings:
        print(f"FAIL  {line}")
    if findings or arguments.keep:
        print(f"\nlogs and state: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if findings else 0


def _interrupt(number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt(signal.Signals(number).name)


def _plan(arguments: argparse.Namespace) -> Plan:
    scale = min(1.0, arguments.minutes / FULL_MINUTES) if arguments.scale is None else arguments.scale
    clocks = Clocks(arguments.minutes * 60, scale, arguments.token_seconds)
    return Plan(OurSide.label, clocks, arguments.cut, edge3=arguments.edge3)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make test-outage ARGS=...", description=__doc__)
    parser.add_argument(
        "--minutes",
        type=_number_from(LEAST_MINUTES, MOST_MINUTES),
        default=FULL_MINUTES,
        help="how long the link is cut, in real time (default: 30)",
    )
    parser.add_argument(
        "--scale",
        type=_number_from(0.001, 1),
        metavar="FACTOR",
        help="of all clocks of Airflow and of the agent (default: minutes / 30, so that all keep their proportion)",
    )
    parser.add_argument(
        "--token-seconds",
        type=_number_from(1, 86_400),
        metavar="N",
        help="how long an execution token lives (default: 600, times the scale)",
    )
    parser.add_argument(
        "--cut",
        choices=("refuse", "blackhole"),
        default="blackhole",
        help="connections are refused, or packets vanish without a word (default: blackhole)",
    )
    parser.add_argument(
        "--sample",
        action="store_true",
        help="two short ones at the same time, instead of all that can be chosen above: about 100 s",
    )
    parser.add_argument("--edge3", action="store_true", help="side by side with Airflow's edge3 worker, from PyPI")
    parser.add_argument(
        "--slack",
        type=_number_from(1, 100),
        default=float(os.environ.get("SCALE") or 1),
        metavar="FACTOR",
        help="of the deadlines afterwards, for a slow or busy machine (default: 1)",
    )
    parser.add_argument("--json", type=Path, default=PROJECT / ".bench" / "outage.json", metavar="FILE")
    parser.add_argument("--keep", action="store_true", help="keep the folder with all logs, even when all is well")
    arguments = parser.parse_args()
    if arguments.edge3 and not (PEER_ENVIRONMENT / "bin" / "airflow").exists():
        parser.error("edge3 is not installed; 'make test-outage ARGS=--edge3' installs it first")
    return arguments


def _number_from(least: float, most: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not (math.isfinite(value) and least <= value <= most):
            raise argparse.ArgumentTypeError(f"{text}: from {least:g} to {most:g}")
        return value

    return number


def _boot(stack: ExitStack, folder: Path, plan: Plan, postgres: Postgres, keeper: Keeper) -> list[Side]:
    """Prepare the sides of a plan."""

    def make(kind: type[OurSide | PeerSide]) -> Side:
        name = "edge3" if kind is PeerSide else "ours"
        return kind(folder / name, keeper=keeper, database_url=postgres.create_database(), clocks=plan.clocks)

    sides = [make(OurSide), *([make(PeerSide)] if plan.edge3 else [])]
    sides[0].label = plan.label
    for side in sides:
        stack.push(side)
    return sides


def _run(trials: Sequence[tuple[Plan, list[Side]]], slack: float, progress: Callable[[str], None]) -> list[Verdict]:
    """Start everything at the same time, and run all plans at the same time."""

    def one(trial: tuple[Plan, list[Side]]) -> list[Verdict]:
        plan, sides = trial
        return run(sides, plan.clocks, plan.cut, slack=slack, progress=progress)

    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda side: side.__enter__(), [side for _, sides in trials for side in sides]))
    if len(trials) == 1:
        # In this thread, which hears of interrupts.
        return one(trials[0])
    with ThreadPoolExecutor() as threads:
        return [verdict for verdicts in threads.map(one, trials) for verdict in verdicts]


def _tell(verdicts: list[Verdict], plans: Sequence[Plan], arguments: argparse.Namespace, seconds: float) -> None:
    for verdict in verdicts:
        print(f"\n{verdict.label}: what happened, after the cut\n{story(verdict)}")
        if verdict.says:
            print(f"\n  its own command said in the middle of it:\n{textwrap.indent(verdict.says, '    ')}")
    if verdicts:
        print(f"\n{table(verdicts)}\n")
    print(f"{seconds:.0f} s in total")
    document = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv[1:],
        "machine": {
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "load": os.getloadavg(),
        },
        "plans": [
            asdict(plan)
            | {
                "settings": plan.clocks.airflow() | plan.clocks.ours(),
                "settings_of_edge3": plan.clocks.airflow() | plan.clocks.worker() if plan.edge3 else None,
            }
            for plan in plans
        ],
        "seconds": round(seconds),
        "sides": [asdict(verdict) for verdict in verdicts],
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    print(f"as JSON: {arguments.json}")


if __name__ == "__main__":
    sys.exit(main())
