"""What the fleet goes through. Each scenario returns its figures, by name."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import psutil

from fleet.execution import ExecutionCalls
from fleet.gauge import Meter, quantile, slope_per_hour

if TYPE_CHECKING:
    from collections.abc import Callable

    from fleet.backend import Backend
    from fleet.crowd import Crowd

Figures = dict[str, Any]

FIRST = 20
"""So many agents are connected before the memory of further ones is measured: whatever is loaded late is there then."""

HOT = {
    "dispatcher: what waits": """SELECT id, kind, queue, slots, priority_weight, queued_at FROM edge_agent_job
        WHERE state = 'queued' AND cancel_reason IS NULL AND queue IN ('nobody') AND slots <= 8 AND team_name IS NULL
        ORDER BY kind, priority_weight DESC, queued_at LIMIT 200""",
    "dispatcher: leases that have ended": """SELECT id, state, fence FROM edge_agent_job WHERE state = 'offered'
        AND (lease_until < now() OR cancel_reason IS NOT NULL) OR state = 'queued' AND cancel_reason IS NOT NULL
        LIMIT 200""",
    "dispatcher: slots that agents' jobs hold": """SELECT agent_name, sum(slots) FROM edge_agent_job
        WHERE agent_name = ANY (ARRAY['fleet-00001', 'fleet-00002']) AND state IN ('offered', 'accepted', 'running')
        GROUP BY agent_name""",
    "scheduler: what has ended": """SELECT id, outcome FROM edge_agent_job WHERE owner =
        (SELECT owner FROM edge_agent_job LIMIT 1) AND NOT reported AND state = 'finished'
        ORDER BY id LIMIT 50""",
}
"""The statements that are asked most, in short, with what they are asked for while many jobs wait."""

DAG = "fleet_mapped"
_PARSED = f"SELECT count(*) FROM serialized_dag WHERE dag_id = '{DAG}'"
_TABLES = ("edge_agent", "edge_agent_job", "edge_agent_log", "edge_agent_event", "edge_agent_metric")
_OPEN_RUNS = f"SELECT count(*) FROM dag_run WHERE dag_id = '{DAG}' AND state IN ('queued', 'running')"
_RUN = f"""SELECT extract(epoch FROM queued_dttm), extract(epoch FROM start_date), extract(epoch FROM end_date), state,
    try_number FROM task_instance WHERE dag_id = '{DAG}' AND map_index >= 0 AND end_date IS NOT NULL"""

SETTLE_SECONDS = 12.0
"""How long after a change things are left to calm down."""


class Stage:
    """A fleet at its server, and how long to look."""

    def __init__(
        self, backend: Backend, crowd: Crowd, *, seconds: float, per_second: float, progress: Callable[[str], None]
    ) -> None:
        self.backend = backend
        self.crowd = crowd
        self.seconds = seconds
        self.per_second = per_second
        """How many connections are opened in a second."""
        self.progress = progress

    def meter(self) -> Meter:
        """Measure from now on."""
        return Meter(self.backend.api_server, self.backend.postgresql, self.backend.database)

    async def idle(self) -> Figures:
        """Connect all, and look what that costs while nothing happens."""
        crowd, backend = self.crowd, self.backend
        await crowd.connect(min(FIRST, len(crowd.agents)), per_second=self.per_second)
        await asyncio.sleep(SETTLE_SECONDS)
        before = backend.api_server.pss_bytes()
        few = crowd.connected
        meter = self.meter()
        took = await crowd.connect(len(crowd.agents), per_second=self.per_second)
        opening = meter.span()
        await asyncio.sleep(SETTLE_SECONDS + 15)
        after = backend.api_server.pss_bytes()
        backend.database.forget()
        lost_before = sum(crowd.counts.lost.values())
        meter = self.meter()
        await asyncio.sleep(self.seconds)
        span = meter.span()
        agents = crowd.connected
        more = agents - few
        return {
            "agents": agents,
            "connect_seconds": took,
            "connect_cpu_ms": 1_000 * opening.api_cpu / max(more, 1),
            "memory_kb_per_connection": (after - before) / 1_024 / max(more, 1),
            "api_pss_mb": after / 2**20,
            "idle_cores": span.api_cpu / span.seconds,
            "idle_cores_per_1000": span.api_cpu / span.seconds / agents * 1_000,
            "idle_database_cores": span.database_cpu / span.seconds,
            "idle_statements_per_second": span.statements / span.seconds,
            "idle_transactions_per_second": span.transactions / span.seconds,
            "idle_dropped": sum(crowd.counts.lost.values()) - lost_before,
            "idle_costly": backend.database.costly(),
        }

    async def steady(self, rate: float) -> Figures:
        """Queue jobs at a steady pace, and see how long each waits."""
        self.crowd.job_seconds = 1.0
        self.backend.database.forget()
        meter = self.meter()
        answer = await self.backend.tell("steady", per_second=rate, seconds=self.seconds)
        span = meter.span()
        figures = self._latency(answer["first"])
        return {
            "steady_rate": rate,
            "steady_jobs": answer["count"],
            **{f"steady_{key}": value for key, value in figures.items()},
            "steady_cpu_ms_per_job": 1_000 * span.api_cpu / answer["count"],
            "steady_statements_per_second": span.statements / span.seconds,
            "steady_transactions_per_second": span.transactions / span.seconds,
            "steady_sync_ms_p95": 1_000 * answer["sync_p95_seconds"],
            "steady_left": answer["left"],
            "steady_failed": answer["failed"],
            "steady_costly": self.backend.database.costly(),
        }

    async def burst(self, jobs: int) -> Figures:
        """Queue many jobs in one transaction, and see how long it takes until all have ended."""
        self.crowd.job_seconds = 0.0
        self.backend.database.forget()
        meter = self.meter()
        simulating = time.process_time()
        answer = await self.backend.tell("burst", count=jobs)
        simulating = time.process_time() - simulating
        span = meter.span()
        found = self.backend.ask("latency", first=answer["first"])
        drained = found["last"][0] - answer["began"]
        return {
            "burst_jobs": jobs,
            "burst_queue_seconds": answer["made_seconds"],
            "burst_seconds": drained,
            "burst_jobs_per_second": jobs / drained,
            "burst_reported_seconds": answer["drained_seconds"],
            "burst_api_cpu_ms_per_job": 1_000 * span.api_cpu / jobs,
            "burst_database_cpu_ms_per_job": 1_000 * span.database_cpu / jobs,
            "burst_agents_cpu_ms_per_job": 1_000 * simulating / jobs,
            "burst_statements_per_job": span.statements / jobs,
            "burst_transactions_per_job": span.transactions / jobs,
            "burst_sync_ms_max": 1_000 * answer["sync_max_seconds"],
            "burst_left": answer["left"],
            "burst_failed": answer["failed"],
            "burst_costly": self.backend.database.costly(),
        }

    async def sync_cost(self, jobs: int) -> Figures:
        """See what the scheduler's ``sync`` takes while many jobs are in flight that nobody fetches."""
        await self.backend.tell("burst", count=jobs, queue="nobody", drain=False)
        first = await self.backend.tell("sync_cost", rounds=1, pause=0)
        self.backend.database.forget()
        answer = await self.backend.tell("sync_cost", rounds=130, pause=0.1)
        return {
            "sync_in_flight": answer["in_flight"],
            "sync_first_ms": 1_000 * first["sync_max_seconds"],
            "sync_median_ms": 1_000 * answer["sync_median_seconds"],
            "sync_p95_ms": 1_000 * answer["sync_p95_seconds"],
            "sync_max_ms": 1_000 * answer["sync_max_seconds"],
            "sync_costly": self.backend.database.costly(),
            "plans": {name: self.backend.database.explain(statement) for name, statement in HOT.items()},
        }

    async def storm(self) -> Figures:
        """Restart the api-server, and see when all are back."""
        crowd = self.crowd
        wanted = len(crowd.agents)
        crowd.reset()
        began = time.monotonic()
        await asyncio.to_thread(self.backend.stop_server)
        await asyncio.to_thread(self.backend.start_server)
        down = time.monotonic()
        await asyncio.to_thread(self.backend.wait_server)
        up = time.monotonic()
        await crowd.until(lambda: crowd.connected >= wanted, 300)
        back = time.monotonic()
        counts = crowd.counts
        after_up = [count for second, count in counts.dialled.items() if second >= int(up) - 1]
        return {
            "storm_agents": wanted,
            "storm_down_seconds": up - began,
            "storm_stop_seconds": down - began,
            "storm_back_seconds": back - up,
            "storm_peak_connections_per_second": max(after_up, default=0),
            "storm_peak_hellos_per_second": max(counts.back.values(), default=0),
            "storm_lost_by_code": {str(code): count for code, count in counts.lost.items()},
            "storm_refused_by_status": {str(code): count for code, count in counts.refused.items()},
            "storm_cpu_ms_per_agent": 1_000 * self.backend.api_server.cpu_seconds() / wanted,
        }

    async def logs(self, jobs: int, megabytes: float) -> Figures:
        """Have many jobs write much log at once."""
        crowd = self.crowd
        crowd.job_seconds, crowd.job_log_bytes = 0.5, int(megabytes * 2**20)
        crowd.counts.delivered = 0
        meter = self.meter()
        began = time.monotonic()
        await self.backend.tell("burst", count=jobs)
        await crowd.until(lambda: crowd.counts.delivered >= jobs, 600)
        seconds = time.monotonic() - began
        span = meter.span()
        crowd.job_log_bytes = 0
        return {
            "logs_jobs": jobs,
            "logs_megabytes": jobs * megabytes,
            "logs_megabytes_per_second": jobs * megabytes / seconds,
            "logs_api_cpu_ms_per_megabyte": 1_000 * span.api_cpu / (jobs * megabytes),
        }

    async def scheduler(self, tasks: int) -> Figures:
        """Have the real scheduler feed the fleet with mapped tasks, each of which tells the Execution API of itself."""
        crowd, backend = self.crowd, self.backend
        crowd.job_seconds = 0.0
        await asyncio.to_thread(backend.start_scheduler)
        await crowd.until(lambda: _count(backend, _PARSED) > 0, 120)
        crowd.execution = ExecutionCalls(backend.url)
        try:
            scheduling = backend.scheduler
            busy = scheduling.cpu_seconds()
            meter = self.meter()
            await asyncio.to_thread(backend.site.cli, "dags", "trigger", DAG)
            await crowd.until(lambda: _count(backend, _OPEN_RUNS) > 0, 60)
            await crowd.until(lambda: _count(backend, _OPEN_RUNS) == 0, 60 + tasks)
            span = meter.span()
            busy = scheduling.cpu_seconds() - busy
        finally:
            await crowd.execution.close()
            crowd.execution = None
            await asyncio.to_thread(backend.stop_scheduler)
        rows = backend.database.query(_RUN)
        seconds = max(row[2] for row in rows) - min(row[0] for row in rows)
        waits = [float(row[1] - row[0]) for row in rows]
        return {
            "scheduler_tasks": len(rows),
            "scheduler_seconds": float(seconds),
            "scheduler_tasks_per_second": len(rows) / float(seconds),
            **{f"scheduler_queued_to_running_p{share}": quantile(waits, share / 100) for share in (50, 95, 99)},
            "scheduler_cpu_ms_per_task": 1_000 * busy / len(rows),
            "scheduler_api_cpu_ms_per_task": 1_000 * span.api_cpu / len(rows),
            "scheduler_database_cpu_ms_per_task": 1_000 * span.database_cpu / len(rows),
            "scheduler_failed": sum(row[3] != "success" for row in rows),
            "scheduler_retried": sum(row[4] > 1 for row in rows),
            "scheduler_left": tasks - len(rows),
        }

    async def soak(self, seconds: float, rate: float) -> Figures:
        """Work on for some time, and see what grows."""
        crowd, backend = self.crowd, self.backend
        crowd.job_seconds = 1.0
        # What is over is deleted after a time that is short beside the soak, so that tables come to rest.
        backend.ask("keep_briefly", days=seconds / 10 / 86_400, purge_seconds=seconds / 40)
        here = psutil.Process()
        points: dict[str, list[tuple[float, float]]] = {}
        work = asyncio.create_task(backend.tell("steady", per_second=rate, seconds=seconds))
        began = time.monotonic()
        while not work.done():
            now = time.monotonic() - began
            # The first part fills pools, caches and tables.
            if seconds / 4 < now < seconds:
                for name, value in {
                    "api_pss_mb": backend.api_server.pss_bytes() / 2**20,
                    "api_descriptors": backend.api_server.descriptors(),
                    "agents_pss_mb": here.memory_full_info().pss / 2**20,
                    "agents_descriptors": here.num_fds(),
                    "agents_connected": crowd.connected,
                    "database_connections": backend.database.connections(),
                    "table_rows": sum(_count(backend, f"SELECT count(*) FROM {table}") for table in _TABLES),
                    "table_mb": sum(_count(backend, f"SELECT pg_total_relation_size('{table}')") for table in _TABLES)
                    / 2**20,
                }.items():
                    points.setdefault(name, []).append((now, value))
            await asyncio.wait([work], timeout=2)
        answer = await work
        slopes = {f"soak_{name}_per_hour": slope_per_hour(values) for name, values in points.items()}
        means = {f"soak_{name}": sum(value for _, value in values) / len(values) for name, values in points.items()}
        return {
            "soak_seconds": seconds,
            "soak_jobs": answer["count"],
            "soak_left": answer["left"],
            "soak_lost": sum(crowd.counts.lost.values()),
            **means,
            **slopes,
            "soak_points": {name: values[:: max(1, len(values) // 60)] for name, values in points.items()},
        }

    def _latency(self, first: int) -> Figures:
        found = self.backend.ask("latency", first=first)
        return {
            f"{name}_p{share}": quantile(found[column], share / 100)
            for name, column in (("offered", "offered_at"), ("started", "started_at"))
            for share in (50, 95, 99)
        }


def _count(backend: Backend, statement: str) -> int:
    ((count,),) = backend.database.query(statement)
    return int(count)
