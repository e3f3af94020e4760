"""Measures what the daemon costs under systemd: time from exec to READY, idle CPU, idle memory.

On a machine under systemd-nspawn, connected to a real Airflow on the host's loopback that has nothing for it to do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.postgres import Postgres
from harness.processes import Keeper
from harness.site import AirflowSite
from machine import nspawn
from machine.edge import AGENT, Edge
from machine.fixtures import CACHE, DAG_FOLDER, ENVIRONMENT, furnish
from machine.image import BOOKWORM, Images
from machine.nspawn import NspawnMachine

SETTLE_SECONDS = 30.0
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Figure:
    """One figure, and the most that it may be."""

    name: str
    value: float
    most: float


def measure(edge: Edge, *, starts: int, idle_seconds: float) -> list[Figure]:
    """Measure an agent that is enabled, and leave it running."""
    seconds, cpu = [], []
    for _ in range(starts):
        edge.guest.run("systemctl", "restart", AGENT)
        cpu.append(edge.usage(edge.pid()).cpu_seconds)
        seconds.append(edge.seconds_to_ready())
        edge.wait_connected()
    progress(f"exec to READY: {', '.join(f'{value:.2f}' for value in sorted(seconds))} s")
    # What start-up leaves to be done is not idle.
    time.sleep(SETTLE_SECONDS)
    pid = edge.pid()
    before, began = edge.usage(pid), time.monotonic()
    time.sleep(idle_seconds)
    after, minutes = edge.usage(pid), (time.monotonic() - began) / 60
    own, files = after.own_bytes / MEBIBYTE, (after.rss_bytes - after.own_bytes) / MEBIBYTE
    # PSS is less where somebody runs the same files: another machine of the same layers does.
    progress(f"memory: {own:.1f} MiB its own, {files:.1f} MiB of files, also used by others or not")
    return [
        Figure("exec to READY, median (s)", statistics.median(seconds), 1.0),
        Figure("exec to READY, slowest (s)", max(seconds), 1.0),
        # What a machine that is busy with other things can tell of it.
        Figure("exec to READY, CPU, median (s)", statistics.median(cpu), 0.5),
        Figure("idle CPU (s per minute)", (after.cpu_seconds - before.cpu_seconds) / minutes, 0.06),
        Figure("idle memory of the daemon, PSS (MiB)", after.pss_bytes / MEBIBYTE, 32.0),
    ]


def progress(what: str) -> None:
    """Say what goes on."""
    print(what, file=sys.stderr, flush=True)


def main() -> int:
    """Measure, print a table, and tell by the exit code whether all is within bounds."""
    parser = argparse.ArgumentParser(prog="make bench-systemd", description=__doc__)
    parser.add_argument("--starts", type=int, default=10, help="starts to measure (default: %(default)s)")
    parser.add_argument("--idle-seconds", type=float, default=300, help="idle time to measure (default: %(default)g)")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    if reason := nspawn.missing():
        progress(f"no machine can be booted here: {reason}")
        return 1
    layers = Images(CACHE, progress=progress).agent(BOOKWORM)
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as folder, Keeper() as keeper, Postgres() as postgres:
        site = AirflowSite(
            Path(folder) / "site",
            keeper=keeper,
            environment=ENVIRONMENT,
            bundles={"errands": DAG_FOLDER},
            database_url=postgres.create_database(),
            progress=progress,
        )
        with site:
            site.start()
            with NspawnMachine(Path(folder) / "m", keeper=keeper, layers=layers, prepare=furnish) as machine:
                edge = Edge(machine, site, name="bench", token=site.create_join_token("bench"))
                edge.configure()
                edge.enable()
                figures = measure(edge, starts=options.starts, idle_seconds=options.idle_seconds)
    print("| figure | measured | at most |\n| --- | ---: | ---: |")
    for figure in figures:
        print(f"| {figure.name} | {figure.value:.2f} | {figure.most:g} |")
    if options.json:
        options.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=2) + "\n")
    return int(any(figure.value > figure.most for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
