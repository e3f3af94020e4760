"""``make fuzz``: a million frames of nonsense for both ends of the wire, some for the APIs of jobs and of people."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable

# Before anything imports Airflow.
os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="edge-agent-fuzz-home-"))
os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
os.environ.setdefault("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", f"sqlite:///{os.environ['AIRFLOW_HOME']}/airflow.db")
os.environ.setdefault("AIRFLOW__LOGGING__LOGGING_LEVEL", "ERROR")

MOST_BLOCKS = 10_000
"""Pieces of memory that 100,000 frames may leave behind: one for ten frames. What is kept of each frame is more."""

MOST_GROWTH_MIB = 16.0
"""That 100,000 frames may add to the resident memory. Less exact: the allocator's holes are in it."""


def main() -> int:
    """Run the targets one after the other."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000, help="how many in total (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="repeats a run (default: another one each time)")
    parser.add_argument(
        "--target", choices=("codec", "server", "agent", "relay", "statsd", "admin"), help="only this one"
    )
    arguments = parser.parse_args()
    from fuzz.door import Door  # noqa: PLC0415  not for --help
    from fuzz.run import Target, Total, run  # noqa: PLC0415  as above
    from fuzz.targets import Agent, Codec, Server  # noqa: PLC0415  as above
    from fuzz.tasks import Statsd  # noqa: PLC0415  as above

    number = int.from_bytes(os.urandom(3)) if arguments.seed is None else arguments.seed
    print(f"seed {number}; the same again: make fuzz ARGS='--seed {number} --frames {arguments.frames}'", flush=True)
    shares: dict[Callable[[], Target], float] = {Codec: 0.3, Server: 0.36, Agent: 0.26, Door: 0.05, Statsd: 0.03}
    chosen = [kind for kind in shares if arguments.target in (None, str(getattr(kind, "name", "")))]
    totals: list[Total] = []

    def tell(total: Total) -> None:
        memory = total.memory[-1][1] / 2**20 if total.memory else 0
        rate = total.frames / max(total.seconds, 0.001)
        found = f", {len(total.findings)} findings" if total.findings else ""
        line = (
            f"{total.name:7} {total.frames:9,} frames  {total.seconds:6.0f} s  {rate:7,.0f}/s  {memory:5.0f} MiB{found}"
        )
        print(line, flush=True)

    for kind in chosen:
        share = shares[kind] / sum(shares[other] for other in chosen)
        said = 0.0

        def seldom(total: Total) -> None:
            nonlocal said
            if total.seconds - said >= 10:
                said = total.seconds
                tell(total)

        total = run(kind(), round(arguments.frames * share + 0.5), seed_number=number, tell=seldom)
        tell(total)
        print("        " + ", ".join(f"{name} {count:,}" for name, count in total.seen.most_common(40)))
        totals.append(total)
    if arguments.target in (None, "admin"):
        from fuzz.admin import run_admin  # noqa: PLC0415  as above

        total = run_admin(max(arguments.frames // 250, 40), seed_number=number)
        tell(total)
        totals.append(total)
    return _judge(totals)


def _judge(totals: list[Total]) -> int:  # type: ignore[name-defined]  # noqa: F821  imported late
    bad = 0
    for total in totals:
        for text in total.findings.values():
            bad += 1
            print(f"\nFINDING in {total.name}: {text}")
        grown, blocks = total.growth(total.memory) / 2**20, total.growth(total.blocks)
        limits = f"at most {MOST_GROWTH_MIB:g} MiB, {MOST_BLOCKS:,} blocks"
        print(f"{total.name}: {grown:+.2f} MiB, {blocks:+,.0f} blocks per 100,000 frames ({limits})")
        bad += grown > MOST_GROWTH_MIB or blocks > MOST_BLOCKS
    frames, seconds = sum(t.frames for t in totals), sum(t.seconds for t in totals)
    print(f"{frames:,} frames in {seconds:.0f} s: {bad} findings")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
