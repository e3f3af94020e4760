"""The commands of edgectl that talk to the daemon. Others are loaded where they are asked for."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from airflow_edge_agent import __version__
from airflow_edge_agent.ctl import show
from airflow_edge_agent.ctl.client import Client, DaemonDown, Refused, find_socket
from airflow_edge_agent.ctl.main import DEGRADED, DOWN, OK, REFUSED
from airflow_edge_agent.ctl.terminal import complain, out, plain

LOOK_SECONDS = 1.0
WAIT_SECONDS = 0.3


def run(arguments: argparse.Namespace) -> int:
    """Carry out a command and return the exit code.

    :raises DaemonDown: it needs the daemon, and that does not answer.
    :raises Refused: the daemon says no.
    """
    name = arguments.command
    if name == "config":
        from airflow_edge_agent.ctl.config import config  # noqa: PLC0415 -- loads the settings model

        return config(arguments)
    if name == "runtime":
        from airflow_edge_agent.ctl.runtime import runtime  # noqa: PLC0415 -- seldom asked for

        return runtime(arguments)
    if name == "enroll":
        from airflow_edge_agent.ctl.enroll import enroll  # noqa: PLC0415 -- loads the settings model

        return enroll(arguments)
    if name == "doctor":
        from airflow_edge_agent.ctl.doctor import doctor  # noqa: PLC0415 -- loads nearly everything

        return doctor(arguments)
    if name == "bugreport":
        from airflow_edge_agent.ctl.bugreport import bugreport  # noqa: PLC0415 -- loads nearly everything

        return bugreport(arguments)
    client = Client(find_socket(arguments.socket, arguments.config))
    command = {
        "status": status,
        "jobs": jobs,
        "logs": logs,
        "version": version,
        "maintenance": maintenance,
        "drain": drain,
        "resume": resume,
        "queues": queues,
        "concurrency": concurrency,
        "reload": reload,
    }[name]
    return command(client, arguments)


# --- Looking ----------------------------------------------------------------------------------------------------------


def status(client: Client, arguments: argparse.Namespace) -> int:
    """Show how the agent is."""
    if arguments.wait:
        return _wait_for(client, arguments)
    if arguments.watch:
        return _watch(client, arguments)
    try:
        found = _status(client)
    except DaemonDown as error:
        if not arguments.json:
            raise
        out(json.dumps({"health": "down", "faults": [str(error)]}))
        return DOWN
    _show_status(found, as_json=arguments.json)
    return _code(found)


def _status(client: Client) -> dict[str, Any]:
    found: dict[str, Any] = client.ask("status")["status"]
    return found


def _show_status(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        out(json.dumps(found))
        return
    for line in show.status(found):
        out(line)


def _code(found: dict[str, Any]) -> int:
    return OK if found["health"] == "healthy" else DEGRADED


def _watch(client: Client, arguments: argparse.Namespace) -> int:
    terminal = sys.stdout.isatty() and not arguments.json
    code = OK
    try:
        while True:
            if terminal:
                out("\x1b[H\x1b[2J" + time.strftime("%H:%M:%S"))
            try:
                found = _status(client)
            except DaemonDown as error:
                code = DOWN
                out(json.dumps({"health": "down", "faults": [str(error)]}) if arguments.json else f"down: {error}")
            else:
                code = _code(found)
                _show_status(found, as_json=arguments.json)
            time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        return code


def _is(found: dict[str, Any] | None, wanted: str) -> bool:
    if found is None:
        return wanted == "down"
    states: dict[str, bool] = {
        "healthy": found["health"] == "healthy",
        "connected": bool(found["connected"]),
        "idle": found["slots_used"] == 0 and bool(found["connected"]),
        "running": found["slots_used"] > 0,
        "maintenance": found["state"] == "maintenance mode",
        "drained": bool(found["drained_by"]) and found["slots_used"] == 0,
        "down": False,
    }
    return states[wanted]


def _wait_for(client: Client, arguments: argparse.Namespace) -> int:
    deadline = None if arguments.timeout is None else time.monotonic() + arguments.timeout
    while True:
        found: dict[str, Any] | None = None
        try:
            found = _status(client)
        except DaemonDown:
            found = None
        if _is(found, arguments.wait):
            return OK
        if deadline is not None and time.monotonic() >= deadline:
            now = "down" if found is None else f"{found['health']}, {found['state']}"
            complain(f"not {arguments.wait} within {arguments.timeout:g} s, but {now}")
            return DOWN if found is None else DEGRADED
        time.sleep(WAIT_SECONDS)


def jobs(client: Client, arguments: argparse.Namespace) -> int:
    """List the jobs."""
    found = client.ask("jobs")["jobs"]
    if arguments.json:
        out(json.dumps(found))
    else:
        for line in show.jobs(found):
            out(line)
    return OK


def logs(client: Client, arguments: argparse.Namespace) -> int:
    """Show the log of a job."""
    pieces = (answer["data"] for answer in _log_answers(client, arguments) if "data" in answer)
    if arguments.raw:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
        return OK
    for line in _lines(pieces):
        out(_readable(line))
    return OK


def _log_answers(client: Client, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    end = None
    for answer in client.stream("logs", job=arguments.job, follow=arguments.follow, patient=arguments.follow):
        end = answer
        yield answer
    if end is None or not end.get("end"):
        raise DaemonDown("the agent has ended; the log is not complete")


def _lines(pieces: Iterator[str]) -> Iterator[str]:
    rest = ""
    for piece in pieces:
        *lines, rest = (rest + piece).split("\n")
        yield from lines
    if rest:
        yield rest


def _readable(line: str) -> str:
    try:
        entry = json.loads(line)
    except ValueError:
        return plain(line)
    if not isinstance(entry, dict) or "event" not in entry:
        return plain(line)
    head = " ".join(str(entry[key]) for key in ("timestamp", "level") if key in entry)
    return plain(f"{head} {entry['event']}".strip())


def version(client: Client, arguments: argparse.Namespace) -> int:
    """Print a version."""
    found = _status(client)["version"] if arguments.daemon else __version__
    name = "edge-agent" if arguments.daemon else "edgectl"
    out(json.dumps({name: found}) if arguments.json else f"{name} {found}")
    return OK


# --- Changing ---------------------------------------------------------------------------------------------------------


def maintenance(client: Client, arguments: argparse.Namespace) -> int:
    """Begin or end maintenance."""
    if arguments.switch == "off":
        before = _status(client)["maintenance"]
        client.ask("maintenance", on=False)
        out("maintenance is over" if before is not None else "the agent was not in maintenance")
        return OK
    answer = client.ask("maintenance", on=True, comment=arguments.comment, for_seconds=arguments.span)
    out("in maintenance: takes no new jobs")
    return _wait_until_clear(client, answer["status"], wait=arguments.wait)


def drain(client: Client, arguments: argparse.Namespace) -> int:
    """Take no new jobs."""
    answer = client.ask("drain", deadline_seconds=arguments.deadline)
    out("drained: takes no new jobs until `edgectl resume`")
    return _wait_until_clear(client, answer["status"], wait=arguments.wait)


def _wait_until_clear(client: Client, found: dict[str, Any], *, wait: bool) -> int:
    told: list[str] | None = None
    while True:
        running = found["running"]
        if not running:
            if told:
                out("no job runs any more")
            return OK
        if running != told:
            told = running
            out(f"{'waits for' if wait else 'still runs'}: {plain(', '.join(running))}")
        if not wait:
            return OK
        time.sleep(WAIT_SECONDS)
        found = _status(client)
        if not (found["maintenance"] or found["drained_by"] or found["stopping"]):
            complain("somebody has ended it meanwhile")
            return REFUSED


def resume(client: Client, arguments: argparse.Namespace) -> int:
    """Take jobs again."""
    del arguments
    drained = _status(client)["drained_by"]
    found = client.ask("resume")["status"]
    out("takes jobs again" if drained else "the agent was not drained")
    if found["maintenance"]:
        complain("it is still in maintenance: edgectl maintenance off")
    return OK


def queues(client: Client, arguments: argparse.Namespace) -> int:
    """Show or change the queues."""
    if arguments.add or arguments.remove:
        found = client.ask("set_queues", add=arguments.add, remove=arguments.remove)["status"]["queues"]
    else:
        found = client.ask("queues")["queues"]
    if arguments.json:
        out(json.dumps(found))
    else:
        for queue in found:
            out(plain(queue))
    return OK


def concurrency(client: Client, arguments: argparse.Namespace) -> int:
    """Change the number of slots."""
    found = client.ask("concurrency", slots=arguments.slots)["status"]
    out(f"{found['slots_total']} slots, {found['slots_used']} in use; until the next restart")
    return OK


def reload(client: Client, arguments: argparse.Namespace) -> int:
    """Let the agent read its configuration again."""
    del arguments
    answer = client.ask("reload")
    if not answer["reloaded"]:
        raise Refused("refused", f"the agent keeps its old configuration:\n{answer['fault']}")
    out(f"in effect now: {', '.join(answer['applied']) or 'nothing new'}")
    if answer.get("runner_renewed"):
        out("the runner is renewed: its code or its task runtime has changed")
    if answer["need_a_restart"]:
        complain(f"in effect after a restart: {', '.join(answer['need_a_restart'])}")
    if answer["enrolment_fault"]:
        complain(answer["enrolment_fault"])
    return OK
