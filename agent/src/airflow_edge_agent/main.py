"""The ``edge-agent`` program."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow_edge_agent import __version__

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
  77  the server refuses the token, or there is none
  78  the configuration is not usable

signals:
  SIGTERM, SIGINT   drain: take no new jobs, wait for the running ones, leave;
                    a second one ends the running jobs
"""


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
    run.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="how much to log")
    run.add_argument("--log-format", choices=("auto", "console", "json"), help="how to log")
    commands.add_parser("version", help="print the version")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    arguments = build_parser().parse_args(argv)
    if arguments.command == "version":
        print(f"edge-agent {__version__}")  # noqa: T201 -- the command's output
        return 0
    # Only now: --help and --version answer without loading everything.
    from airflow_edge_agent.configuration import ConfigError, load_settings  # noqa: PLC0415
    from airflow_edge_agent.daemon import run  # noqa: PLC0415
    from airflow_edge_agent.runtime.logging import configure_logging  # noqa: PLC0415

    given = {
        key: value
        for key in ("server_url", "name", "queues", "concurrency")
        if (value := getattr(arguments, key)) is not None
    }
    log = {key: value for key in ("level", "format") if (value := getattr(arguments, f"log_{key}")) is not None}
    try:
        settings = load_settings(arguments.config, given | ({"log": log} if log else {}))
    except ConfigError as error:
        print(f"edge-agent: {error}", file=sys.stderr)  # noqa: T201 -- logging is not configured yet
        return EXIT_CONFIG
    configure_logging(settings.log.level, settings.log.format, sys.stderr)
    return run(settings)


if __name__ == "__main__":
    sys.exit(main())
