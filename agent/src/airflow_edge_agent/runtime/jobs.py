"""The loops around running jobs: what the runner reports, how their logs grow, how time passes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import structlog

from airflow_edge_agent.core.events import JobEnded, JobFound, JobStarted, LogGrew, RuntimeChecked, Tick
from airflow_edge_agent.core.jobs import Phase
from airflow_edge_agent.ports import (
    JobStore,
    Runner,
    RunnerEnded,
    RunnerGone,
    RunnerNotRenewed,
    RunnerReady,
    RunnerRefused,
    RunnerStarted,
    RunnerUnusable,
)
from airflow_edge_agent.protocol.jobs import Outcome
from airflow_edge_agent.runtime.pump import Pump

log = structlog.get_logger()

CONTACT_SECONDS = 5.0
"""How often it is noted that the server is there, while there are jobs."""

IDLE_SECONDS = 20.0
"""How long without anything to do counts as idle: longer than the start, with its proof of the task runtime, takes."""

THRIFT_SECONDS = 60.0
"""Least time between two times at which memory is given back: it costs some milliseconds of CPU."""

BACKLOG_BYTES = 1024 * 1024
"""How much unsent log of a job is worth a note on disk."""

RECHECK_SECONDS = 30.0
"""How long a problem of the task runtime stands before it is looked at again."""

PROOF_SECONDS = 10.0
"""How long after the start an agent without any job tries whether its task runtime works."""


def _ignore(_: dict[str, Any] | None) -> None:
    pass


async def runner_loop(
    pump: Pump,
    runner: Runner,
    store: JobStore,
    on_versions: Callable[[dict[str, str]], None],
    on_isolation: Callable[[dict[str, Any] | None], None] = _ignore,
) -> None:
    """Feed what the runner reports."""
    async for event in runner.events():
        match event:
            case RunnerReady(versions, isolation):
                on_versions(versions)
                on_isolation(isolation)
                pump.feed(RuntimeChecked(None))
            case RunnerNotRenewed(detail):
                log.warning("the runner goes on as it is", reason=detail)
            case RunnerStarted(job_id, pid):
                pump.feed(JobStarted(job_id, pid))
            case RunnerEnded(job_id, told):
                lost = JobEnded(job_id, Outcome.CRASHED, detail="the runner left no result")
                ended = store.ended(job_id) or told or lost
                pump.feed(replace(ended, log_bytes=store.log_size(job_id)))
            case RunnerRefused(job_id, detail):
                pump.feed(JobEnded(job_id, Outcome.NOT_STARTED, detail=detail))
            case RunnerUnusable(problem):
                # The server must know before the first job goes back, or it offers that job to us again at once.
                pump.on_runner_problem(problem)
                pump.feed(RuntimeChecked(problem))
            case RunnerGone(problem, jobs):
                _runner_gone(pump, store, problem, jobs)


def _runner_gone(pump: Pump, store: JobStore, problem: str | None, jobs: frozenset[str]) -> None:
    for job in [job for job in pump.core.jobs.values() if job.job_id in jobs]:
        if job.phase is Phase.STARTING and not store.handed_over(job.job_id):
            fallback = JobEnded(job.job_id, Outcome.NOT_STARTED, detail=problem or "the runner ended before its start")
        elif job.phase in (Phase.STARTING, Phase.RUNNING):
            fallback = JobEnded(
                job.job_id, Outcome.LOST, detail="the runner died", log_bytes=store.log_size(job.job_id)
            )
        else:
            continue
        pump.feed(store.ended(job.job_id) or fallback)


async def time_loop(pump: Pump, store: JobStore) -> None:
    """While there are jobs: tell the core how their logs have grown, and that time passes."""
    contact_noted_at = -CONTACT_SECONDS
    while True:
        await pump.busy.wait()
        for job in list(pump.core.jobs.values()):
            if job.phase in (Phase.STARTING, Phase.RUNNING):
                size = store.log_size(job.job_id)
                if size > job.log_size:
                    pump.feed(LogGrew(job.job_id, size))
        _note_backlogs(pump, store)
        now = time.monotonic()
        if pump.core.connected and now >= contact_noted_at + CONTACT_SECONDS:
            contact_noted_at = now
            store.note_contact()
        pump.feed(Tick())
        await asyncio.sleep(pump.core.intervals.log_seconds)


def _note_backlogs(pump: Pump, store: JobStore) -> None:
    """While the server is away: write down what it cannot have, so that it may be dropped after a restart, too."""
    if pump.core.connected:
        return
    for job in pump.core.jobs.values():
        if job.log_size - job.log_sent >= BACKLOG_BYTES:
            store.note_sent(job.job_id, job.log_sent)


async def runtime_loop(pump: Pump, check: Callable[..., str | None], wake: asyncio.Event) -> None:
    """Look at the task runtime at the start, prove it a little later, and look again while there is a problem with it.

    :param check: returns the problem; its keyword ``prove``: whether to try if tasks can run, should none have so far.
    :param wake: set when the runner has told of a problem.
    """
    pump.feed(RuntimeChecked(await asyncio.to_thread(check, prove=False)))
    # By then a busy agent has had its first job, and a runner that works is proof enough.
    await _sleep(PROOF_SECONDS, wake)
    pump.feed(RuntimeChecked(await asyncio.to_thread(check, prove=True)))
    pump.stirred.set()
    while True:
        await _sleep(RECHECK_SECONDS, wake)
        if pump.core.problem is not None or pump.core.connected is False:
            pump.feed(RuntimeChecked(await asyncio.to_thread(check, prove=False)))


async def _sleep(seconds: float, wake: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(wake.wait(), seconds)
    wake.clear()


async def thrift_loop(pump: Pump, give_back: Callable[[], None]) -> None:
    """When the agent has become idle, give back the memory that start-up, a job or a request has left free."""
    while True:
        await pump.stirred.wait()
        while pump.stirred.is_set() or pump.busy.is_set():
            pump.stirred.clear()
            await asyncio.sleep(IDLE_SECONDS)
        give_back()
        await asyncio.sleep(THRIFT_SECONDS)


async def renew_if_changed(runner: Runner) -> bool:
    """After an upgrade: let new jobs start from the new code, while those that run go on. Return whether it was one."""
    asked = await runner.renew(if_changed=True)
    if asked:
        log.info("renews the runner: its code or its task runtime has changed", edge_event="runner_renewed")
    return asked


async def recover(pump: Pump, runner: Runner, store: JobStore, boot_id: str) -> None:
    """Take over the jobs of an earlier run of the daemon, and find out how those ended that are no more."""
    running = await runner.reattach()
    heard_seconds_ago = store.contact_seconds_ago()
    await renew_if_changed(runner)
    for job in store.load():
        ended = job.ended
        pid = running.get(job.job_id)
        if ended is None and pid is None:
            if job.boot_id != boot_id:
                ended = JobEnded(job.job_id, Outcome.LOST, detail="the host rebooted")
            elif job.handed_over:
                ended = JobEnded(job.job_id, Outcome.LOST, detail="the runner died while the agent was away")
            else:
                ended = JobEnded(job.job_id, Outcome.NOT_STARTED, detail="the agent ended before the job's start")
            ended = JobEnded(job.job_id, ended.outcome, detail=ended.detail, log_bytes=store.log_size(job.job_id))
        size = store.log_size(job.job_id)
        sent = store.sent(job.job_id)
        pump.feed(
            JobFound(
                job.job_id,
                job.fence,
                job.slots,
                job.label,
                pid,
                ended,
                log_bytes=size,
                log_sent=sent,
                task=job.task,
                disconnect_lease_seconds=job.disconnect_lease_seconds,
                heard_seconds_ago=heard_seconds_ago,
            )
        )
