"""What the daemon says, for people."""

from __future__ import annotations

from typing import Any

from airflow_edge_agent.ctl.terminal import coloured, plain, since, size, span, table, until

_HEALTH = {"healthy": "green", "degraded": "yellow"}


def status(answer: dict[str, Any]) -> list[str]:
    """Describe the agent."""
    health = str(answer["health"])
    lines = [f"{plain(str(answer['name']))}  {coloured(health, _HEALTH.get(health, 'red'))}  {answer['state']}"]
    lines += [f"  {coloured('fault', 'red')}        {plain(fault)}" for fault in answer.get("faults", [])]
    lines += [f"  {coloured('warning', 'yellow')}      {plain(warning)}" for warning in answer.get("warnings", [])]
    server = answer.get("server_url") or "none: not enrolled"
    if answer.get("connected"):
        beat = answer.get("last_heartbeat_seconds")
        server += f" · connected ({answer.get('carrier')})" + (
            f" · heartbeat {beat:.0f} s ago" if beat is not None else ""
        )
    lines.append(f"  server       {server}")
    lines += _away(answer.get("away"))
    if answer.get("airflow_version"):
        lines.append(
            f"               Airflow {answer['airflow_version']}, airflow-edge-server {answer['server_version']}"
        )
    lines.append(f"  slots        {answer['slots_used']} of {answer['slots_total']} in use")
    lines.append(f"  queues       {plain(', '.join(answer['queues']))}")
    if answer.get("refused_queues"):
        lines.append(f"  not granted  {plain(', '.join(answer['refused_queues']))}")
    if answer.get("team"):
        lines.append(f"  team         {plain(answer['team'])}")
    lines += _server_wants(answer.get("server_wants"))
    lines += _maintenance(answer.get("maintenance"))
    if answer.get("drained_by"):
        lines.append(f"  drained      by {plain(answer['drained_by'])}: takes no new jobs until `edgectl resume`")
    if answer.get("stopping"):
        lines.append("  stopping     takes no new jobs, leaves when it can")
    running = answer.get("running", [])
    if running and (answer.get("maintenance") or answer.get("drained_by") or answer.get("stopping")):
        lines.append(f"  still runs   {plain(running[0])}")
        lines += [f"               {plain(label)}" for label in running[1:]]
    if answer.get("undelivered"):
        lines.append(f"  undelivered  {answer['undelivered']} results or logs wait for the server")
    runtime = answer.get("runtime", {})
    if runtime.get("task_sdk"):
        lines.append(f"  runtime      Task SDK {runtime['task_sdk']}, {plain(str(runtime.get('runtime_python', '')))}")
    lines.append(f"  daemon       {answer['version']}, pid {answer['pid']}, up {span(answer['uptime_seconds'])}")
    return lines


def _server_wants(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    wants = []
    if found.get("slots"):
        wants.append(f"{found['slots']} slots instead of the {found['slots_configured']} configured")
    wants += [f"queue {plain(queue)} as well" for queue in found.get("queues_added", [])]
    wants += [f"not queue {plain(queue)}" for queue in found.get("queues_removed", [])]
    if found.get("drain"):
        wants.append("no new jobs here, until it takes that back")
    return [f"  {'' if n else 'server wants':<12} {want}" for n, want in enumerate(wants)]


def _away(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    words = [f"disconnected since {since(found['since'])}"]
    if found.get("lease_until"):
        words.append(f"lease {until(found['lease_until'])}")
    words.append(f"{found['running']} task{'s' if found['running'] != 1 else ''} running")
    words.append(f"{found['results_waiting']} result{'s' if found['results_waiting'] != 1 else ''} waiting")
    return [f"               {', '.join(words)}"]


def _maintenance(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    who = plain(str(found.get("by") or "the server"))
    lines = [f"  maintenance  asked for by {who}, since {since(found.get('since'))}"]
    if found.get("comment"):
        lines.append(f"               {plain(found['comment'])}")
    if found.get("until"):
        lines.append(f"               {until(found['until'])}")
    if not found.get("told_to_server", True):
        lines.append("               the server does not know it yet")
    return lines


def jobs(found: list[dict[str, Any]]) -> list[str]:
    """List the jobs."""
    if not found:
        return ["no jobs"]
    rows = [
        [
            job["job_id"][:8],
            job["phase"]
            + (f" ({job['outcome']})" if job.get("outcome") else "")
            + (" ending" if job.get("cancelled") and job["phase"] != "finished" else ""),
            str(job["slots"]),
            span(job["running_seconds"]) if job.get("running_seconds") is not None else "",
            str(job.get("pid") or ""),
            f"{size(job['log_delivered_bytes'])} of {size(job['log_bytes'])}",
            plain(job["task"]),
        ]
        for job in found
    ]
    return table(["JOB", "PHASE", "SLOTS", "RUNS", "PID", "LOG SENT", "TASK"], rows)
