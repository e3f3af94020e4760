"""The same load on edge3's own API, from simulated workers of it."""

from __future__ import annotations

import asyncio
import shutil
import time
from typing import TYPE_CHECKING

from fleet.backend import Backend
from fleet.crowd import RESULTS, loop_factory
from fleet.gauge import Meter, quantile
from fleet.peer import PeerWorkers
from fleet.scenarios import SETTLE_SECONDS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from pathlib import Path

    from fleet.scenarios import Figures

PEER_SCENARIOS = ("idle", "steady", "burst")
PEER_BURST = 1_000
"""Most jobs of edge3's burst: its figures are per job and second."""


def measure_peer(arguments: argparse.Namespace, environment: Path) -> Figures:
    """Let simulated workers of edge3 do the same at its own API, and return the figures.

    :param environment: the virtual environment with Airflow and edge3.
    """
    root = RESULTS / "edge3"
    shutil.rmtree(root, ignore_errors=True)
    settings = {"AIRFLOW__EDGE__API_ENABLED": "True", "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING"}
    executor = "airflow.providers.edge3.executors.EdgeExecutor"
    began = time.monotonic()

    def progress(words: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  edge3: {words}", flush=True)

    with Backend(root, environment=environment, executor=executor, settings=settings, progress=progress) as backend:
        backend.start()
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(_run_peer(backend, arguments, progress))


async def _run_peer(backend: Backend, arguments: argparse.Namespace, progress: Callable[[str], None]) -> Figures:
    secret = backend.site.env()["AIRFLOW__API_AUTH__JWT_SECRET"]
    workers = PeerWorkers(backend.site.url, secret, arguments.airflow, arguments.agents, seed=arguments.seed)
    workers.start()
    figures: Figures = {"agents": arguments.agents}
    for name in [name for name in arguments.scenarios if name in PEER_SCENARIOS]:
        await asyncio.sleep(SETTLE_SECONDS)
        progress(name)
        workers.call_seconds.clear()
        meter = Meter(backend.api_server, backend.postgresql, backend.database)
        match name:
            case "idle":
                await asyncio.sleep(arguments.seconds)
            case "steady":
                workers.job_seconds = 1.0
                answer = await backend.tell("steady", per_second=arguments.rate, seconds=arguments.seconds)
                queued = await backend.tell("queued", first=answer["first"])
                waits = [at - queued[str(index)] for index, at in workers.begun.items() if str(index) in queued]
                figures |= {f"steady_offered_p{share}": quantile(waits, share / 100) for share in (50, 95, 99)}
                figures |= {"steady_jobs": answer["count"], "steady_left": answer["left"]}
            case _:
                workers.job_seconds = 0.0
                jobs = min(arguments.jobs, PEER_BURST)
                answer = await backend.tell("burst", count=jobs)
                figures |= {"burst_jobs": jobs, "burst_left": answer["left"]}
                figures["burst_jobs_per_second"] = (jobs - answer["left"]) / answer["drained_seconds"]
        span = meter.span()
        figures[f"{name}_call_seconds_p95"] = quantile(workers.call_seconds, 0.95)
        if name == "burst":
            figures |= {
                "burst_api_cpu_ms_per_job": 1_000 * span.api_cpu / figures["burst_jobs"],
                "burst_database_cpu_ms_per_job": 1_000 * span.database_cpu / figures["burst_jobs"],
                "burst_statements_per_job": span.statements / figures["burst_jobs"],
                "burst_transactions_per_job": span.transactions / figures["burst_jobs"],
            }
            continue
        figures |= {
            f"{name}_statements_per_second": span.statements / span.seconds,
            f"{name}_transactions_per_second": span.transactions / span.seconds,
        }
        if name == "idle":
            cores = span.api_cpu / span.seconds
            figures |= {"idle_cores": cores, "idle_cores_per_1000": cores / arguments.agents * 1_000}
            figures["idle_database_cores"] = span.database_cpu / span.seconds
        else:
            figures["steady_cpu_ms_per_job"] = 1_000 * span.api_cpu / figures["steady_jobs"]
        for key, value in figures.items():
            progress(f"    {key} {value:.4g}")
    await workers.stop()
    figures["calls_repeated"] = workers.repeated
    figures["errors"] = len(workers.errors)
    figures["error_samples"] = workers.errors[:10]
    return figures
