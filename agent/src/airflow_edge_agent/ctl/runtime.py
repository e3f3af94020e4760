"""``edgectl runtime``: further providers for the packaged task runtime, which knows itself how to add them."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from airflow_edge_agent.ctl.main import DOWN, INTERNAL, OK, REFUSED, USAGE
from airflow_edge_agent.ctl.terminal import complain, out, plain, table

CURRENT = Path("/opt/airflow-edge-runtime/current")
RUNNER = "edge-runner.service"


def runtime(arguments: argparse.Namespace, current: Path = CURRENT) -> int:
    """Add to, remove from or list what was added to the task runtime."""
    top = current.resolve()
    program = top / "share/extras.py"
    if not program.exists():
        complain(
            f"{current}: the package airflow-edge-runtime is not installed; in an environment of your own, use its pip"
        )
        return REFUSED
    command = [str(top / "bin/python"), "-IS", str(program), arguments.what]
    if arguments.what == "list":
        return _list(command, as_json=arguments.json)
    if os.geteuid() != 0:
        complain("this changes what tasks run with: only root may; try with sudo")
        return REFUSED
    if arguments.what == "install":
        try:
            command += [f"--source={source}" for source in _sources(arguments)]
        except ValueError as error:
            complain(str(error))
            return USAGE
    if arguments.what in ("install", "remove"):
        command += ["--", *arguments.names]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)  # noqa: S603 -- the package's own program
    if done.returncode:
        complain(plain_lines(done.stderr.removeprefix("airflow-edge-runtime: ")))
        return REFUSED
    out("Tasks that begin from now on have it.")
    return _renew_runner()


def plain_lines(text: str) -> str:
    """Return several lines without control characters in any of them."""
    return "\n".join(plain(line) for line in text.rstrip().splitlines())


def _sources(arguments: argparse.Namespace) -> list[str]:
    """Return pip's options for where to look.

    :raises ValueError: a folder is not there, or an address has a password in it.
    """
    found = ["--no-index"] if arguments.no_index else []
    for folder in arguments.find_links:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no folder there; give one that holds wheels")
        found.append(f"--find-links {folder.resolve()}")
    if arguments.index_url:
        if urlsplit(arguments.index_url).password:
            raise ValueError("a password in --index-url is for all to see; put it into /root/.netrc")
        found.append(f"--index-url {arguments.index_url}")
    return found


def _list(command: list[str], *, as_json: bool) -> int:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)  # noqa: S603 -- the package's own program
    if done.returncode:
        complain(plain_lines(done.stderr.removeprefix("airflow-edge-runtime: ")))
        return REFUSED
    if as_json:
        out(done.stdout.rstrip())
        return OK
    try:
        found = json.loads(done.stdout)
    except ValueError:
        complain("the task runtime's answer is not understood: is it of another release than this edgectl?")
        return INTERNAL
    out(f"Task runtime {plain(found['runtime'])}, Task SDK {plain(str(found['task_sdk']))}")
    out(f"Asked for: {plain(', '.join(found['wanted'])) or 'nothing beyond what it has'}")
    rows = [[plain(name), plain(version)] for name, version in sorted(found["added"].items())]
    for line in table(["ADDED", "VERSION"], rows) if rows else ():
        out(line)
    return OK


def _renew_runner() -> int:
    """Let a runner that is at work start a successor; it has loaded what there was before."""
    systemctl = shutil.which("systemctl")
    if systemctl is None or not Path("/run/systemd/system").is_dir():
        out("A runner that is at work goes on with what it has; restart it when it is idle.")
        return OK
    active = subprocess.run([systemctl, "--quiet", "is-active", RUNNER], check=False)  # noqa: S603 -- fixed words
    if active.returncode:
        return OK
    if subprocess.run([systemctl, "reload", RUNNER], check=False).returncode:  # noqa: S603 -- fixed words
        complain(f"{RUNNER} was not reloaded: it goes on with what it has until it is idle")
        return DOWN
    return OK
