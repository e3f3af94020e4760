"""How many api-servers and what database a fleet needs, from what one connection, job and statement costs.

Takes the measured costs of :mod:`fleet` and prints the table of ``docs/scaling.md``. What it assumes: costs grow with
agents and jobs, not with the table; each api-server has one core and is to be half idle; queries of the dispatcher that
look at all waiting jobs are repeated by each api-server.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

USABLE = 0.5
"""Share of a core that may be used: above, waiting times grow faster than load."""


@dataclass(frozen=True)
class Costs:
    """What was measured."""

    idle_cores_per_1000: float
    """Of the api-server."""
    job_ms: float
    """CPU of the api-server for one job, from offer to end."""
    job_database_ms: float
    idle_database_cores_per_1000: float
    look_ms: float
    """CPU of the database for one look of one dispatcher."""
    connection_kb: float
    base_mb: float
    """Memory of an api-server without agents."""


@dataclass(frozen=True)
class Plan:
    """What a fleet needs."""

    agents: int
    jobs_per_second: float
    api_servers: int
    api_memory_mb: float
    """Of each."""
    database_cores: float
    wait_factor: float
    """How much longer a job waits for an api-server than on an idle one, as a queue with one server has it."""


def plan(agents: int, jobs_per_second: float, costs: Costs) -> Plan:
    """Return how many api-servers it takes, and what they need."""
    work = agents / 1_000 * costs.idle_cores_per_1000 + jobs_per_second * costs.job_ms / 1_000
    servers = max(1, math.ceil(work / USABLE))
    used = work / servers
    looks = servers * min(jobs_per_second / servers, 1 / 0.02)
    database = (
        agents / 1_000 * costs.idle_database_cores_per_1000
        + jobs_per_second * costs.job_database_ms / 1_000
        + looks * costs.look_ms / 1_000
    )
    memory = costs.base_mb + agents / servers * costs.connection_kb / 1_024
    return Plan(agents, jobs_per_second, servers, memory, database, 1 / (1 - used))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--idle", type=float, default=0.054, help="cores of the api-server per 1,000 idle agents")
    parser.add_argument("--job", type=float, default=2.5, help="ms of CPU of the api-server per job")
    parser.add_argument("--job-database", type=float, default=1.2, help="ms of CPU of the database per job")
    parser.add_argument("--idle-database", type=float, default=0.007, help="cores of the database per 1,000 agents")
    parser.add_argument("--look", type=float, default=1.0, help="ms of CPU of the database per look of a dispatcher")
    parser.add_argument("--connection", type=float, default=36.0, help="KB per connection")
    parser.add_argument("--base", type=float, default=143.0, help="MB of an api-server without agents")
    given = parser.parse_args()
    costs = Costs(
        given.idle, given.job, given.job_database, given.idle_database, given.look, given.connection, given.base
    )
    print("| agents | jobs/s | api-servers | MB each | database cores | waiting, times |")
    print("| --- | --- | --- | --- | --- | --- |")
    for agents in (100, 1_000, 5_000, 10_000, 100_000):
        for rate in (agents / 1_000, agents / 100):
            row = plan(agents, rate, costs)
            print(
                f"| {agents:,} | {rate:g} | {row.api_servers} | {row.api_memory_mb:.0f} | {row.database_cores:.2f} "
                f"| {row.wait_factor:.1f} |"
            )


if __name__ == "__main__":
    main()
