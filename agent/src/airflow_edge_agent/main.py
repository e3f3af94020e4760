"""The ``edge-agent`` program."""

from __future__ import annotations

import argparse
import functools
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow_edge_agent import __version__
from airflow_edge_agent.lazily import in_a_child, stay_small

EXIT_USAGE = 64
EXIT_CONFIG = 78

_EPILOG = """\
exit codes:
  0   stopped cleanly
  64  wrong usage
  70  internal error
  73  state or runtime directory cannot be used, or another agent runs in it
  75  another agent has this name
  76  protocol versions of agent and server do not fit
  77  the server refuses the credential, or there is none and no service manager
  78  the configuration is not usable, or does not allow to run as root

signals:
  SIGTERM, SIGINT   stop: take no new jobs, do about the running ones what
                    [drain] on_stop says, leave; a second one ends them
  SIGHUP            read configuration and credential again
"""


_AS_ROOT = (
    "will not run as root: a fault of the agent, or any task, could do everything on this machine. Start the unit "
    "edge-agent.service, or as another user, e.g. with 'runuser -u edge-agent'; or set allow_root = true (--allow-root)"
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; manual pages and completions are made from it, too."""
    parser = _Parser(
        prog="edge-agent",
        description="Runs tasks of a central Apache Airflow on this machine.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"edge-agent {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    run = commands.add_parser(
        "run",
        help="run the agent in the foreground",
        description="Run the agent in the foreground until SIGTERM or SIGINT. Settings come from the configuration "
        "file, then EDGE_AGENT_* variables (EDGE_AGENT_RUNNER__PYTHON sets [runner] python), then these flags.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        default=os.environ.get("EDGE_AGENT_CONFIG") or None,
        help="configuration file (default: /etc/airflow-edge-agent/agent.toml)",
    )
    run.add_argument("--server-url", metavar="URL", help="Airflow's base URL, e.g. https://airflow.example.com")
    run.add_argument("--name", help="name of this agent (default: the host's)")
    run.add_argument("--queues", metavar="Q1,Q2", type=lambda text: text.split(","), help="queues to serve")
    run.add_argument("--concurrency", type=int, metavar="N", help="slots for jobs (default: number of cores)")
    run.add_argument(
        "--allow-root",
        action="store_const",
        const=True,
        help="run as root although each task could do all then",
    )
    run.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="how much to log")
    run.add_argument("--log-format", choices=("auto", "console", "json", "journal"), help="how to log")
    stopping = commands.add_parser(
        "stopping",
        help="tell the running agent what its stop is for (ExecStop= of its unit)",
        description="Ask systemd whether the unit is being stopped, restarted or shut down with the host, and tell the "
        "agent, so that a restart leaves running tasks alone. Does nothing if it cannot find out.",
    )
    stopping.add_argument("--unit", default="edge-agent.service", help="the agent's unit (default: %(default)s)")
    stopping.add_argument("--socket", type=Path, metavar="PATH", help="the agent's control socket")
    commands.add_parser("version", help="print the version")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    arguments = build_parser().parse_args(argv)
    if arguments.command == "version":
        print(f"edge-agent {__version__}")  # noqa: T201 -- the command's output
        return 0
    if arguments.command == "stopping":
        from airflow_edge_agent.ctl.stopping import announce  # noqa: PLC0415 -- see below

        return announce(arguments.unit, arguments.socket)
    stay_small()
    # Only now: --help and --version answer without loading everything.
    from airflow_edge_agent.configuration import ConfigError, Loaded, from_environment, load  # noqa: PLC0415

    given = {
        key: value
        for key in ("server_url", "name", "queues", "concurrency", "allow_root")
        if (value := getattr(arguments, key)) is not None
    }
    log = {key: value for key in ("level", "format") if (value := getattr(arguments, f"log_{key}")) is not None}
    # Under a service manager the agent waits for `edgectl enroll`; anybody else would wait for nothing.
    unenrolled = bool(os.environ.get("NOTIFY_SOCKET"))

    # Once: they do not change, and a child can be had only as long as there are no threads.
    variables = functools.cache(lambda: in_a_child(from_environment))

    def read() -> Loaded:
        flags = given | ({"log": log} if log else {})
        return load(arguments.config, flags, unenrolled=unenrolled, variables=variables)

    try:
        loaded = read()
    except ConfigError as error:
        for line in str(error).splitlines():
            print(f"edge-agent: {line}", file=sys.stderr)  # noqa: T201 -- logging is not configured yet
        return EXIT_CONFIG
    if os.geteuid() == 0 and not loaded.settings.allow_root:
        print(f"edge-agent: {_AS_ROOT}", file=sys.stderr)  # noqa: T201 -- as above
        return EXIT_CONFIG
    from airflow_edge_agent.daemon import run  # noqa: PLC0415
    from airflow_edge_agent.operations import set_up_logging  # noqa: PLC0415

    # The memory of the daemon holds its credential. Who needs a core dump all the same can raise it again: prlimit.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    journal = set_up_logging(loaded.settings.log)
    return run(loaded, read, journal)


if __name__ == "__main__":
    sys.exit(main())
