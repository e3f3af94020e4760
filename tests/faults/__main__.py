"""Runs the fault suite: ``make test-faults``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from airflow_edge_agent.settings import Settings
from faults.catalogue import FAULTS
from faults.report import matrix
from faults.run import Outcome, folder_of, run_fault
from faults.world import World

ON_SQLITE = ("none", "cut", "cut-before-frame-up", "cut-before-frame-down", "storm", "api-server-kill", "agent-kill")
"""What is repeated on SQLite: there every writer waits for every other."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make test-faults ARGS=...", description=__doc__)
    parser.add_argument("--only", default="", metavar="A,B", help="these faults only; --list names them")
    parser.add_argument("--seeds", type=int, default=int(os.environ.get("SEEDS") or 1), help="runs of each fault")
    parser.add_argument("--seed", type=int, help="this seed only: replays a run")
    parser.add_argument("--carrier", default="", metavar="A,B", help="http, websocket; default: the agent's own choice")
    parser.add_argument("--database", default="postgresql,sqlite", metavar="A,B", help="default: %(default)s")
    parser.add_argument(
        "--execution-api", choices=("relay", "direct"), default="relay", help="how tasks reach Airflow (%(default)s)"
    )
    parser.add_argument("--scale", type=float, default=float(os.environ.get("SCALE") or 1), help="of all deadlines")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all outcomes there")
    parser.add_argument("--keep", action="store_true", help="keep the folder with all logs, even when all is well")
    parser.add_argument("--list", action="store_true", help="name the faults and end")
    arguments = parser.parse_args()
    unknown = set(filter(None, arguments.only.split(","))) - set(FAULTS)
    if unknown:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
    if arguments.carrier and "carrier" not in Settings.model_fields:
        parser.error("this agent has one carrier only; leave --carrier out")
    return arguments


def main() -> int:
    """Run what was asked for, print the matrix, and return 1 if anything was violated."""
    arguments = _arguments()
    if arguments.list:
        print("\n".join(FAULTS))
        return 0
    seeds = [arguments.seed] if arguments.seed is not None else list(range(1, arguments.seeds + 1))
    only = list(filter(None, arguments.only.split(",")))
    carriers: list[str | None] = list(filter(None, arguments.carrier.split(","))) or [None]
    folder = Path(tempfile.mkdtemp(prefix="edge-faults-"))
    outcomes: list[Outcome] = []
    began = time.monotonic()
    try:
        for database in arguments.database.split(","):
            names = only or (list(FAULTS) if database == "postgresql" else list(ON_SQLITE))
            names = [name for name in names if database in FAULTS[name].databases]
            print(f"starting Airflow on {database}", flush=True)
            with World(
                folder / database,
                database=database,
                scale=arguments.scale,
                execution_api=arguments.execution_api,
            ) as world:
                for name in names:
                    for carrier in carriers:
                        for seed in seeds:
                            outcomes.append(run_fault(world, FAULTS[name], seed, carrier=carrier))
                            _tell(world, outcomes[-1])
                if world.revived:
                    print(f"Airflow's components that ended by themselves and were restarted: {world.revived}")
    finally:
        _finish(arguments, outcomes, time.monotonic() - began)
        violated = any(outcome.violated for outcome in outcomes)
        if violated or arguments.keep:
            print(f"\nlogs and state: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return 1 if violated else 0


def _tell(world: World, outcome: Outcome) -> None:
    name = f"{outcome.fault} seed {outcome.seed} ({outcome.carrier}, {outcome.database})"
    if outcome.skipped:
        print(f"skip  {name}: {outcome.skipped}", flush=True)
        return
    recovered = f", recovered after {outcome.recovered_seconds:.1f} s" if outcome.recovered_seconds is not None else ""
    print(
        f"{'FAIL' if outcome.violated else 'ok':5} {name}: {outcome.seconds:.0f} s{recovered}  {_times(outcome)}",
        flush=True,
    )
    if outcome.violated:
        for line in outcome.findings.lines():
            print(f"      {line}")
        carrier = f" --carrier {outcome.carrier}" if outcome.carrier != "default" else ""
        arguments = f"--only {outcome.fault} --seed {outcome.seed}{carrier} --database {outcome.database}"
        print(f"      see {folder_of(world, outcome)}")
        print(f'      again: make test-faults ARGS="{arguments}"', flush=True)


def _times(outcome: Outcome) -> str:
    return "(" + ", ".join(f"{name} {seconds:.0f}" for name, seconds in outcome.phases.items()) + ")"


def _finish(arguments: argparse.Namespace, outcomes: list[Outcome], seconds: float) -> None:
    if not outcomes:
        return
    print(f"\n{matrix(outcomes)}\n")
    violated = sum(outcome.violated for outcome in outcomes)
    print(f"{len(outcomes)} runs in {seconds:.0f} s, {violated} with violations")
    if arguments.json:
        report = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": sys.argv[1:],
            "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
            "seconds": round(seconds),
            "runs": [outcome.as_dict() for outcome in outcomes],
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
