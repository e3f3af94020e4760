"""How fast logs come, and what they cost on the way."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil

from bench.figure import MEBIBYTE, RUN_SECONDS, BenchError, Figure, percentile
from harness.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.rest import TaskInstance
    from harness.site import AirflowSite

LOG_LINES = 50_000
LOG_LINE_CHARACTERS = 1_000
TICKS_READ = 20


def measure_logs(
    site: AirflowSite, daemon: Callable[[], psutil.Process], progress: Callable[[str], None]
) -> list[Figure]:
    """Measure how soon lines are visible, and a task that writes 50 MB.

    :raises BenchError: when a log is not what the task wrote.
    """
    progress("how soon log lines are visible")
    ages = _tick_ages(site)
    progress("a task that writes 50 MB of log")
    seconds, growth = _big_log(site, daemon)
    return [
        Figure("log_visible_p95_seconds", "log line visible, p95 (s)", percentile(ages, 95), 1.0),
        Figure("big_log_seconds", "50 MB of log, start to stored (s)", seconds, 60, 1),
        Figure("big_log_daemon_growth_mib", "  the daemon grows by (MiB)", growth["daemon"], 30, 1),
        Figure("big_log_server_growth_mib", "  the api-server grows by (MiB)", growth["api-server"], 30, 1),
    ]


def _tick_ages(site: AirflowSite) -> list[float]:
    """Return how old each new line was when it was first seen in the stored log. Polls add up to 50 ms."""
    run_id = site.api.trigger_dag("bench_ticks")
    site.api.wait_for_state("bench_ticks", run_id, "clock", "running")
    seen: dict[str, float] = {}

    def look() -> bool:
        for (data,) in site.query(
            "SELECT l.data FROM edge_agent_log l JOIN edge_agent_job j ON j.id = l.job_id "
            f"WHERE j.run_id = '{run_id}' AND j.dag_id = 'bench_ticks'"
        ):
            for tick in re.findall(rb"tick ([0-9.]+)", bytes(data)):
                seen.setdefault(tick.decode(), time.time() - float(tick))
        return len(seen) >= TICKS_READ

    look()
    seen.clear()  # what was there before we looked has no age that we know
    wait_until(look, seconds=RUN_SECONDS, what="log lines", poll_seconds=0.05)
    site.api.wait_for_run("bench_ticks", run_id, seconds=RUN_SECONDS)
    return list(seen.values())[1:]


def _big_log(site: AirflowSite, daemon: Callable[[], psutil.Process]) -> tuple[float, dict[str, float]]:
    processes = {"daemon": [daemon()], "api-server": _tree(site.components["api-server"].pid)}
    with _peak_growth(processes) as growth:
        run_id = site.api.trigger_dag("bench_log")
        ti = site.api.wait_for_state("bench_log", run_id, "talkative", "running")

        def stored() -> bool:
            return site.query(
                "SELECT count(*) FROM edge_agent_job WHERE state = 'finished' AND log_next_offset = log_bytes "
                f"AND run_id = '{run_id}' AND dag_id = 'bench_log'"
            ) == [(1,)]

        wait_until(stored, seconds=RUN_SECONDS, what="the whole log to be stored")
        ended = time.time()
    ti = site.api.task_instance("bench_log", run_id, "talkative")
    assert ti.started_at is not None
    _check_content(site, ti)
    return ended - ti.started_at.timestamp(), growth


def _check_content(site: AirflowSite, ti: TaskInstance) -> None:
    wanted, found = hashlib.sha256(), hashlib.sha256()
    for number in range(LOG_LINES):
        wanted.update(f"{number:08d} ".ljust(LOG_LINE_CHARACTERS, "x").encode())
    for line in site.api.log_stream(ti).splitlines():
        event = json.loads(line).get("event", "")
        if len(event) == LOG_LINE_CHARACTERS:
            found.update(event.encode())
    if wanted.digest() != found.digest():
        raise BenchError("the log in Airflow is not what the task wrote")


def _tree(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


@contextmanager
def _peak_growth(processes: dict[str, list[psutil.Process]]) -> Iterator[dict[str, float]]:
    """Watch resident memory; afterwards the mapping holds by how much each grew at most, in MiB."""
    growth = dict.fromkeys(processes, 0.0)
    before = {name: sum(p.memory_info().rss for p in group) for name, group in processes.items()}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            for name, group in processes.items():
                now = sum(p.memory_info().rss for p in group if p.is_running())
                growth[name] = max(growth[name], (now - before[name]) / MEBIBYTE)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield growth
    finally:
        done.set()
        watcher.join()
