"""Measure an edge agent at a real Airflow, on each database there is, beside edge3 if wanted."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from bench.arms import AgentArm, Arm, PeerArm
from bench.figure import BenchError
from bench.measure import Bench, Plan
from bench.report import Column, is_own, table, write_json
from bench.ways import LABEL, SETTINGS, Places, Ways
from harness.postgres import Postgres, PostgresError, find_binaries
from harness.processes import Keeper, ProcessError
from harness.rest import RestError
from harness.site import AirflowSite, SiteError
from harness.waiting import WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

PROJECT = Path(__file__).resolve().parents[2]
BENCH = PROJECT / ".bench"
DEMO = PROJECT / ".demo"
DAGS = Path(__file__).with_name("dags")


def main() -> int:
    """Measure what the command line asks for and return the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    arguments = _arguments()
    plan = Plan(
        latency_samples=arguments.samples,
        cpu_rounds=2 if arguments.quick else 5,
        idle_seconds=60 if arguments.quick else 180,
    )
    columns: list[Column] = []
    try:
        for database in arguments.databases:
            columns += [_measure(kind, database, plan) for kind in arguments.arms]
    except KeyboardInterrupt:
        return 130
    except (BenchError, SiteError, ProcessError, PostgresError, RestError, WaitTimeoutError) as error:
        log = f", log: {error.log}" if isinstance(error, SiteError) else f", logs are below {BENCH}"
        print(f"FAILED: {error}{log}", file=sys.stderr)
        return 1
    print(f"\n{table(columns)}")
    write_json(arguments.json, columns)
    print(f"\nAs JSON: {arguments.json}")
    missed = [figure for column in columns if is_own(column) for figure in column.figures if figure.met is False]
    return 1 if missed and arguments.check else 0


def _interrupt(number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt(signal.Signals(number).name)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    parser.add_argument(
        "--databases",
        type=_list_of("sqlite", "postgresql"),
        default=None,
        metavar="LIST",
        help="default: all there are",
    )
    parser.add_argument("--samples", type=int, default=20, help="tasks to measure the latency with (default: 20)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and a shorter idle time; rougher figures")
    parser.add_argument(
        "--arms",
        type=_list_of("agent", "relay", "peer", "ways"),
        default=["agent"],
        metavar="LIST",
        help="agent (whose tasks reach the Execution API by themselves), relay (an agent as it is by default), peer "
        "(edge3), ways (both ways to the Execution API, compared call by call and over a slow link), or several",
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    parser.add_argument("--json", type=Path, default=BENCH / "results.json", metavar="FILE")
    arguments = parser.parse_args()
    if arguments.databases is None:
        arguments.databases = _databases()
    return arguments


def _databases() -> list[str]:
    try:
        find_binaries()
    except PostgresError as error:
        print(f"only SQLite is measured: {error}", flush=True)
        return ["sqlite"]
    return ["sqlite", "postgresql"]


def _list_of(*allowed: str) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := sorted(set(chosen) - set(allowed)):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(allowed)}")
        return chosen

    return parse


def _measure(kind: str, database: str, plan: Plan) -> Column:
    root = BENCH / f"{kind}-{database}"
    shutil.rmtree(root, ignore_errors=True)
    began = time.monotonic()

    def progress(text: str) -> None:
        print(f"{kind}, {database}  {time.monotonic() - began:6.1f} s  {text}", flush=True)

    with ExitStack() as stack:
        keeper = stack.enter_context(Keeper())
        dags = root / "edge" / "dags"
        for folder in (root / "central" / "dags", dags):
            shutil.copytree(DAGS, folder, ignore=shutil.ignore_patterns("__pycache__"))
        if kind in {"agent", "relay"}:
            server = PROJECT / ".venv"
            arm: Arm = AgentArm(
                root / "edge" / "agent",
                keeper,
                environment=DEMO / "env-agent",
                runtime=DEMO / "env-runtime",
                dags=dags,
                relay=kind == "relay",
            )
        elif kind == "ways":
            return _compare_ways(root, database, stack, keeper, plan=plan, progress=progress)
        else:
            server = BENCH / "env-peer"
            arm = PeerArm(root / "edge" / "worker", keeper, environment=server)
        site = AirflowSite(
            root / "central",
            keeper=keeper,
            environment=server,
            bundles={"bench": root / "central" / "dags"},
            executor=arm.executor,
            settings=arm.settings,
            database_url=_database(database, stack),
            progress=progress,
        )
        with site:
            site.start()
            arm.start(site)
            try:
                return Column(arm.label, database, Bench(site, arm, plan, progress).run())
            finally:
                arm.stop()


def _compare_ways(
    root: Path, database: str, stack: ExitStack, keeper: Keeper, *, plan: Plan, progress: Callable[[str], None]
) -> Column:
    places = Places(root / "edge", DEMO / "env-agent", DEMO / "env-runtime", root / "edge" / "dags")
    site = AirflowSite(
        root / "central",
        keeper=keeper,
        environment=PROJECT / ".venv",
        bundles={"bench": root / "central" / "dags"},
        settings=SETTINGS,
        database_url=_database(database, stack),
        progress=progress,
    )
    with site:
        site.start()
        return Column(LABEL, database, Ways(site, keeper, places, plan.cpu_rounds, progress).run())


def _database(name: str, stack: ExitStack) -> str | None:
    """Return the URL of an empty database; ``None`` for SQLite."""
    if name == "sqlite":
        return None
    return stack.enter_context(Postgres()).create_database()


if __name__ == "__main__":
    sys.exit(main())
