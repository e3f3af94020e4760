"""Runs the survival matrix: ``make test-survival``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from faults.world import World
from survival.report import matrix
from survival.rows import FAULTS, FULL, SMALL
from survival.run import SETTINGS, run_row
from survival.trial import Row

DAGS = Path(__file__).parent / "dags"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make test-survival ARGS=...", description=__doc__)
    parser.add_argument("--only", default="", metavar="A,B", help="rows whose names begin so; --list names them")
    parser.add_argument("--sample", action="store_true", help="some rows, with less log and fewer tasks: minutes")
    parser.add_argument("--small", action="store_true", help="all rows, with less log and fewer tasks")
    parser.add_argument("--log-mb", type=int, help="how much log the task that writes much writes (default: 1000)")
    parser.add_argument(
        "--execution-api", choices=("relay", "direct"), default="relay", help="how tasks reach Airflow (%(default)s)"
    )
    parser.add_argument("--scale", type=float, default=float(os.environ.get("SCALE") or 1), help="of all deadlines")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows there")
    parser.add_argument("--keep", action="store_true", help="keep the folder with all logs, even when all is well")
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    return parser.parse_args()


def main() -> int:
    """Run what was asked for, print the matrix, and return 1 if anything was violated."""
    arguments = _arguments()
    wanted = tuple(filter(None, arguments.only.split(",")))
    faults = [
        fault
        for fault in FAULTS.values()
        if (not wanted or fault.name.startswith(wanted)) and (fault.sample or not arguments.sample)
    ]
    if arguments.list or not faults:
        print("\n".join(FAULTS))
        return 0 if arguments.list else 64
    sizes = SMALL if arguments.sample or arguments.small else FULL
    if arguments.log_mb is not None:
        sizes = replace(sizes, log_lines=arguments.log_mb * 1_000)
    folder = Path(tempfile.mkdtemp(prefix="edge-survival-"))
    rows: list[Row] = []
    began = time.monotonic()
    try:
        print("starting Airflow", flush=True)
        with World(
            folder,
            scale=arguments.scale,
            dags=DAGS,
            dag_ids=("trial", "crowd"),
            settings=SETTINGS,
            execution_api=arguments.execution_api,
        ) as world:
            for fault in faults:
                rows.append(run_row(world, fault, sizes))
                _tell(rows[-1])
            if world.revived:
                print(f"Airflow's components that ended by themselves and were restarted: {world.revived}")
    finally:
        violated = any(row.findings for row in rows)
        print(f"\n{matrix(rows)}\n\n{len(rows)} rows in {time.monotonic() - began:.0f} s")
        if arguments.json:
            arguments.json.write_text(json.dumps(_report(rows, time.monotonic() - began), indent=1) + "\n")
        if violated or arguments.keep:
            print(f"\nlogs and state: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return 1 if violated else 0


def _tell(row: Row) -> None:
    verdict = "skip" if row.skipped else "FAIL" if row.findings else "ok"
    print(f"{verdict:5} {row.fault}: {row.skipped or f'{row.seconds:.0f} s'}", flush=True)
    for line in row.findings:
        print(f"      {line}", flush=True)


def _report(rows: list[Row], seconds: float) -> dict[str, object]:
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv[1:],
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
        "seconds": round(seconds),
        "rows": [asdict(row) for row in rows],
    }


if __name__ == "__main__":
    sys.exit(main())
