"""The measurements. All of them look from outside: at Airflow's API, its access log and the kernel's accounts."""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.figure import MEBIBYTE, RUN_SECONDS, BenchError, Figure, percentile
from bench.logs import measure_logs
from harness.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.arms import Arm
    from harness.rest import TaskInstance
    from harness.site import AirflowSite

MAPPED_TASKS = 10
CROWD_TASKS = 60
SLEEPING_TASKS = 4
WARM_UPS = 5


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    latency_samples: int
    cpu_rounds: int
    idle_seconds: float


class Bench:
    """Measures one arm at one Airflow."""

    def __init__(self, site: AirflowSite, arm: Arm, plan: Plan, progress: Callable[[str], None]) -> None:
        self._site = site
        self._arm = arm
        self._plan = plan
        self._progress = progress

    def run(self) -> list[Figure]:
        """Measure everything.

        :raises BenchError: when a run fails.
        """
        for dag_id in ("bench_single", "bench_mapped", "bench_sleep"):
            self._site.api.wait_for_dag(dag_id)
        self._progress("warming up")
        self._finish("bench_single")
        self._finish("bench_mapped")
        parts = (self._latency, self._cost, self._crowd, self._logs, self._task_memory, self._idle, self._warm_up)
        return [figure for part in parts for figure in part()]

    def _finish(self, dag_id: str) -> list[TaskInstance]:
        api = self._site.api
        run_id = api.trigger_dag(dag_id)
        state = api.wait_for_run(dag_id, run_id, seconds=RUN_SECONDS)
        if state != "success":
            raise BenchError(f"run {run_id} of {dag_id} ended as {state}, see {self._site.logs}")
        return api.task_instances(dag_id, run_id)

    def _latency(self) -> list[Figure]:
        self._progress(f"queued to started, {self._plan.latency_samples} tasks one after the other")
        samples = []
        for _ in range(self._plan.latency_samples):
            # At random moments, or the samples would all meet the same phase of whatever polls.
            time.sleep(random.uniform(0.2, 2.0))
            (ti,) = self._finish("bench_single")
            assert ti.started_at is not None
            assert ti.queued_at is not None
            samples.append((ti.started_at - ti.queued_at).total_seconds())
        return [
            Figure(
                "queued_to_started_median_seconds", "queued to started, median (s)", statistics.median(samples), 0.5
            ),
            Figure("queued_to_started_p95_seconds", "queued to started, p95 (s)", percentile(samples, 95)),
        ]

    def _cost(self) -> list[Figure]:
        self._progress(f"CPU and wall time, {self._plan.cpu_rounds} rounds of {MAPPED_TASKS} trivial tasks")
        daemon, others, wall, spans = [], [], [], []
        for _ in range(self._plan.cpu_rounds):
            before = self._arm.cpu_seconds()
            instances = self._finish("bench_mapped")
            # The kernel adds a process's time to its parent's account when it has ended.
            after = self._settled_cpu()
            daemon.append((after[0] - before[0]) / MAPPED_TASKS)
            others.append((after[1] - before[1]) / MAPPED_TASKS)
            wall += [ti.seconds for ti in instances if ti.seconds is not None]
            queued = [ti.queued_at for ti in instances if ti.queued_at]
            ended = [ti.ended_at for ti in instances if ti.ended_at]
            spans.append((max(ended) - min(queued)).total_seconds() / MAPPED_TASKS)
        total = [sum(parts) for parts in zip(daemon, others, strict=True)]
        return [
            Figure("cpu_per_task_seconds", "CPU per trivial task (s)", statistics.median(total), 0.08, 3),
            Figure("cpu_per_task_daemon_seconds", "  of that, daemon", statistics.median(daemon), digits=3),
            Figure("cpu_per_task_others_seconds", "  of that, all else", statistics.median(others), digits=3),
            Figure("wall_per_task_seconds", "wall per trivial task, start to end (s)", statistics.median(wall), 0.25),
            Figure("span_per_task_seconds", "first queued to last ended, per task (s)", statistics.median(spans)),
        ]

    def _settled_cpu(self) -> tuple[float, float]:
        """Return the CPU time once it has stopped growing by more than an idle agent uses."""
        latest = self._arm.cpu_seconds()

        def settled() -> bool:
            nonlocal latest
            before, latest = latest, self._arm.cpu_seconds()
            return sum(latest) - sum(before) < 0.02

        wait_until(settled, seconds=30, what="the agent's processes to come to rest", poll_seconds=0.5)
        return latest

    def _crowd(self) -> list[Figure]:
        self._progress(f"{CROWD_TASKS} trivial tasks at once")
        instances = self._finish("bench_crowd")
        queued = [ti.queued_at for ti in instances if ti.queued_at]
        ended = [ti.ended_at for ti in instances if ti.ended_at]
        span = (max(ended) - min(queued)).total_seconds()
        return [Figure("crowd_span_seconds", f"{CROWD_TASKS} tasks, first queued to last ended (s)", span, 15, 1)]

    def _logs(self) -> list[Figure]:
        if self._arm.log_watch is None:
            return []
        return measure_logs(self._site, self._arm.log_watch, self._progress)

    def _task_memory(self) -> list[Figure]:
        self._progress(f"memory of {SLEEPING_TASKS} sleeping tasks")
        api = self._site.api
        # What is there before the first task and stays after the last belongs to none of them.
        self._finish("bench_single")
        self._settled_cpu()
        waiting = self._arm.total_pss_bytes()
        run_id = api.trigger_dag("bench_sleep")

        def all_running() -> bool:
            return [ti.state for ti in api.task_instances("bench_sleep", run_id)] == ["running"] * SLEEPING_TASKS

        wait_until(all_running, seconds=RUN_SECONDS, what="all sleeping tasks to run")
        self._settled_cpu()
        jobs, total = self._arm.job_pss_bytes(), self._arm.total_pss_bytes()
        if not all_running():
            raise BenchError("the sleeping tasks ended before their memory could be measured")
        api.wait_for_run("bench_sleep", run_id, seconds=RUN_SECONDS)
        share = SLEEPING_TASKS * MEBIBYTE
        return [
            Figure("pss_added_per_task_mib", "PSS that a running task adds (MiB)", (total - waiting) / share, 25, 1),
            Figure("pss_per_task_mib", "  its own processes' PSS (MiB)", jobs / share, digits=1),
            Figure("pss_waiting_mib", "PSS of all that waits for tasks, warm (MiB)", waiting / MEBIBYTE, digits=1),
        ]

    def _idle(self) -> list[Figure]:
        self._progress("waiting for the agent to be idle")
        wait_until(self._arm.resting, seconds=120, what="what ran tasks to leave", poll_seconds=0.5)
        self._progress(f"idle for {self._plan.idle_seconds:g} s")
        # Of the daemon alone: the kernel adds the time of what ran tasks to other accounts some time after it has left.
        cpu_before, requests_before = self._arm.cpu_seconds()[0], self._requests()
        began = time.monotonic()
        time.sleep(self._plan.idle_seconds)
        elapsed = time.monotonic() - began
        requests, cpu = self._requests() - requests_before, self._arm.cpu_seconds()[0] - cpu_before
        return [
            Figure("idle_pss_mib", "idle PSS (MiB)", self._arm.idle_pss_bytes() / MEBIBYTE, 35, 1),
            Figure("idle_requests_per_minute", "idle, requests per minute", requests * 60 / elapsed, 3, 1),
            Figure("idle_cpu_seconds_per_hour", "idle CPU (s per hour)", cpu * 3600 / elapsed, digits=1),
        ]

    def _warm_up(self) -> list[Figure]:
        if self._arm.warm_up is None:
            return []
        self._progress(f"warm-up of a runner, {WARM_UPS} times")
        seconds = [self._arm.warm_up() for _ in range(WARM_UPS)]
        return [
            Figure("warm_up_seconds", "runner's warm-up, start to ready, median (s)", statistics.median(seconds), 2.5)
        ]

    def _requests(self) -> int:
        """Count what the api-server's access log has of this arm so far."""
        wanted = f"path={self._arm.request_path}"
        with self._site.components["api-server"].log.open(errors="replace") as file:
            return sum(1 for line in file if wanted in line)
