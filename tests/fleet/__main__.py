"""Let a fleet of simulated agents work at a real api-server on PostgreSQL, and measure what that costs.

Jobs go through the real executor. They are handed to it directly and not by the scheduler, which does not reach
hundreds a second; what tasks would tell the Execution API is left out, and so is its cost. Only in the scenario
'scheduler' both are there: the real scheduler runs a Dag of mapped tasks, and each tells the Execution API of itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import psutil

from airflow_edge_server.descriptors import make_room
from fleet.backend import Backend
from fleet.crowd import RESULTS, Crowd, credential, loop_factory, make_keys, public_half
from fleet.report import judge, ratios, table
from fleet.scenarios import Stage
from fleet.versus import measure_peer
from harness.postgres import PostgresError
from harness.processes import ProcessError
from harness.site import EDGE_EXECUTOR, SiteError
from harness.waiting import WaitTimeoutError

if TYPE_CHECKING:
    from fleet.scenarios import Figures

PROJECT = Path(__file__).resolve().parents[2]
SCENARIOS = ("idle", "steady", "burst", "sync", "storm", "logs", "soak", "scheduler")


def main() -> int:
    """Measure what the command line asks for and return the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    arguments = _arguments()
    try:
        results = measure(arguments)
        if arguments.edge3:
            results["edge3"] = measure_peer(arguments, PROJECT / ".bench" / "env-peer")
    except KeyboardInterrupt:
        return 130
    except (SiteError, ProcessError, PostgresError, WaitTimeoutError, TimeoutError) as error:
        print(f"FAILED: {type(error).__name__}: {error}; logs are below {RESULTS}", file=sys.stderr)
        return 1
    peer = results.pop("edge3", None)
    print(f"\n{table(results, peer)}")
    if peer is not None:
        results |= {"edge3": peer, "edge3_to_ours": ratios(results, peer)}
    write_json(arguments.json, arguments, results)
    print(f"\nAs JSON: {arguments.json}")
    missed = judge(results)
    for line in missed:
        print(f"MISSED: {line}")
    return 1 if results.get("errors") or (missed and arguments.check) else 0


def measure(arguments: argparse.Namespace) -> Figures:
    """Set everything up, run the scenarios and return the figures."""
    began = time.monotonic()
    if make_room(arguments.agents) is not None:
        raise SiteError(f"no {arguments.agents} files may be open here: raise the limit (ulimit -Hn)", RESULTS)

    def progress(words: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {words}", flush=True)

    root = RESULTS / "ours"
    shutil.rmtree(root, ignore_errors=True)
    settings = {
        "AIRFLOW__EDGE_AGENT__MAX_CONNECTIONS": str(arguments.agents * 2 + 100),
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
    }
    if "scheduler" in arguments.scenarios:
        # Airflow's bounds that would hide what its scheduler can do, out of the way.
        settings |= {
            "AIRFLOW__CORE__PARALLELISM": "1000000",
            "AIRFLOW__CORE__DEFAULT_POOL_TASK_SLOT_COUNT": "1000000",
            "AIRFLOW__CORE__MAX_MAP_LENGTH": "1000000",
            "FLEET_TASKS": str(arguments.tasks),
        }
    with Backend(
        root,
        environment=PROJECT / ".venv",
        executor=EDGE_EXECUTOR,
        settings=settings,
        own=arguments.server == "own",
        bundles={"fleet-dags": Path(__file__).with_name("dags")},
        progress=progress,
    ) as backend:
        backend.start()
        progress(f"enrolling {arguments.agents} agents")
        keys = make_keys([f"fleet-{number:05}" for number in range(arguments.agents)])
        ids = backend.ask("enroll", keys={name: public_half(key) for name, key in keys.items()})["ids"]
        credentials = {name: credential(ids[name], key) for name, key in keys.items()}
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(_run(backend, credentials, arguments, progress))


async def _run(backend: Backend, credentials: Any, arguments: argparse.Namespace, progress: Any) -> Figures:
    crowd = Crowd(
        backend.url,
        credentials,
        concurrency=arguments.concurrency,
        seed=arguments.seed,
        relays="scheduler" in arguments.scenarios,
    )
    stage = Stage(backend, crowd, seconds=arguments.seconds, per_second=arguments.connect_rate, progress=progress)
    figures: Figures = {}
    errors: list[str] = []
    complaints: list[str] = []
    for name in arguments.scenarios:
        progress(name)
        if name != "idle":
            await crowd.connect(len(crowd.agents), per_second=arguments.connect_rate)
        match name:
            case "idle":
                found = await stage.idle()
            case "steady":
                found = await stage.steady(arguments.rate)
            case "burst":
                found = await stage.burst(arguments.jobs)
            case "sync":
                found = await stage.sync_cost(arguments.jobs)
            case "storm":
                found = await stage.storm()
            case "logs":
                found = await stage.logs(arguments.log_jobs, arguments.log_megabytes)
            case "scheduler":
                found = await stage.scheduler(arguments.tasks)
            case _:
                found = await stage.soak(arguments.soak_seconds, arguments.rate)
        figures |= found
        counts = crowd.reset()
        errors += counts.errors + counts.closes
        complaints += counts.complaints
        if name != "storm":
            errors += [f"{count} connections ended with {code} in '{name}'" for code, count in counts.lost.items()]
        errors += [f"{counts.killed} jobs were cancelled in '{name}'"] if counts.killed else []
        left = [key for key in found if key.endswith(("_left", "_failed")) and found[key]]
        errors += [f"{key}: {found[key]}" for key in left]
        for key, value in found.items():
            if isinstance(value, int | float):
                progress(f"    {key} {value:.4g}")
    await crowd.leave()
    crowd.close()
    errors += [f"logged: {line}" for line in backend.log_faults()]
    figures["errors"] = len(errors)
    figures["error_samples"] = errors[:20]
    figures["complaints"] = len(complaints)
    figures["complaint_samples"] = complaints[:10]
    return figures


def write_json(path: Path, arguments: argparse.Namespace, results: Figures) -> None:
    """Write everything that was measured, and on what kind of machine."""
    document = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "system": platform.platform(),
            "python": platform.python_version(),
            "cpu_count": os.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
            "load": os.getloadavg(),
        },
        "arguments": {name: str(value) for name, value in vars(arguments).items()},
        "figures": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2, default=str) + "\n")


def _interrupt(number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt(signal.Signals(number).name)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="make bench-fleet N=... ARGS=...",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("--agents", "-n", type=int, default=200, help="how many agents")
    made.add_argument(
        "--server",
        choices=("own", "airflow"),
        default="own",
        help="what agents connect to: a process of their own ('airflow edge-agents api-server'), or Airflow's",
    )
    made.add_argument("--scenarios", type=_scenarios, default=list(SCENARIOS), metavar="LIST", help=",".join(SCENARIOS))
    made.add_argument("--concurrency", type=int, default=8, help="slots of each agent")
    made.add_argument("--seconds", type=float, default=60, help="how long to look at an idle fleet, and at steady load")
    made.add_argument("--rate", type=float, default=20, help="jobs per second of the steady load")
    made.add_argument("--jobs", type=int, default=10_000, help="jobs of the burst, and in flight for sync")
    made.add_argument("--connect-rate", type=float, default=200, help="connections per second while the fleet grows")
    made.add_argument("--log-jobs", type=int, default=100, help="jobs that write much log")
    made.add_argument("--log-megabytes", type=float, default=2, help="how much each of them")
    made.add_argument("--soak-seconds", type=float, default=240, help="length of the soak")
    made.add_argument("--tasks", type=int, default=500, help="mapped tasks of the Dag that the real scheduler runs")
    made.add_argument("--seed", type=int, default=1, help="of what is left to chance in the simulation")
    made.add_argument("--edge3", action="store_true", help="the same on edge3's API as well: idle, steady, burst")
    made.add_argument("--airflow", default="3.3.2", help="what edge3's workers say of their Airflow")
    made.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    made.add_argument("--json", type=Path, default=RESULTS / "results.json", metavar="FILE")
    return made


def _arguments() -> argparse.Namespace:
    return parser().parse_args()


def _scenarios(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := sorted(set(chosen) - set(SCENARIOS)):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(SCENARIOS)}")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
