"""The ``edgectl`` program."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from airflow_edge_agent import __version__

OK = 0
DOWN = 1
DEGRADED = 2
REFUSED = 3
USAGE = 64
INTERNAL = 70
BAD_CONFIG = 78

CODES = """\
exit codes:
  0   done; for status: healthy
  1   the agent does not run or does not answer; doctor: a check failed
  2   the agent is degraded: it runs, but cannot work as it should
  3   the agent refuses: this user may not, or it cannot be done now
  64  wrong usage
  70  internal error
  78  the configuration is not usable
"""

STATES = ("healthy", "connected", "idle", "running", "maintenance", "drained", "down")

Command = Callable[[argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def _span(text: str) -> float:
    from airflow_edge_agent.ctl.terminal import seconds_of  # noqa: PLC0415 -- only where it is needed

    try:
        return seconds_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _slots(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1_000:  # noqa: PLR2004 -- as in the settings
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 1000")
    return int(text)


def _add(commands: Any, name: str, words: str, text: str, examples: Sequence[str]) -> argparse.ArgumentParser:
    shown = "\n".join(f"  {example}" for example in examples)
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=words,
        description=text,
        epilog=f"examples:\n{shown}\n\n{CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; manual pages and completions are made from it, too."""
    parser = _Parser(
        prog="edgectl",
        description="Looks after the edge agent on this machine.",
        epilog="examples:\n  edgectl status\n  edgectl maintenance on --comment 'new disk' --for 2h --wait\n"
        f"  edgectl doctor\n\n{CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"edgectl {__version__}")
    parser.add_argument("--socket", type=Path, metavar="PATH", help="the agent's control socket")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        default=os.environ.get("EDGE_AGENT_CONFIG") or None,
        help="configuration file (default: /etc/airflow-edge-agent/agent.toml)",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    _looking(commands)
    _changing(commands)
    _setting_up(commands)
    _task_runtime(commands)
    return parser


def _looking(commands: Any) -> None:
    status = _add(
        commands, "status", "how the agent is", "Show how the agent is. The exit code tells it, too: 0 healthy, 1 "
        "down, 2 degraded. Maintenance and drain are somebody's wish, and healthy.",
        ["edgectl status", "edgectl status --watch", "edgectl status --wait connected --timeout 30s",
         "edgectl status --json | jq .slots_used"],
    )  # fmt: skip
    status.add_argument("--json", action="store_true", help="print one JSON object")
    status.add_argument("--watch", action="store_true", help="show it anew every second, until Ctrl-C")
    status.add_argument("--wait", choices=STATES, metavar="STATE", help=f"wait for one of: {', '.join(STATES)}")
    status.add_argument("--timeout", type=_span, metavar="SPAN", help="wait no longer than this (with --wait)")
    jobs = _add(commands, "jobs", "list the jobs", "List the jobs that are here, and those whose result or log the "
                "server does not have yet.", ["edgectl jobs", "edgectl jobs --json"])  # fmt: skip
    jobs.add_argument("--json", action="store_true", help="print a JSON list")
    logs = _add(commands, "logs", "show the log of a job", "Show the log of a job that is still here. The logs of "
                "older ones are at the server.", ["edgectl logs 3f1c9a6d", "edgectl logs 3f1c9a6d -f"])  # fmt: skip
    logs.add_argument("job", metavar="JOB", help="its id, or the beginning of it (at least four characters)")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the job ends")
    logs.add_argument("--raw", action="store_true", help="as it is in the file, without making it readable")
    doctor = _add(commands, "doctor", "find out what is wrong", "Check everything between this machine's tasks and the "
                  "server, and say what to do. Works while the agent is down, too.",
                  ["edgectl doctor", "sudo edgectl doctor --json"])  # fmt: skip
    doctor.add_argument("--json", action="store_true", help="print a JSON list of checks")
    bug = _add(commands, "bugreport", "collect what a report should hold", "Write a tar.gz, for your eyes only, with "
               "status, checks, versions and settings. Settings that are not known to be harmless are left out.",
               ["sudo edgectl bugreport", "sudo edgectl bugreport --output /tmp/report.tar.gz"])  # fmt: skip
    bug.add_argument("--output", type=Path, metavar="FILE", help="where to write it; must not exist")
    version = _add(commands, "version", "print the version", "Print the version of edgectl, or of the running agent.",
                   ["edgectl version", "edgectl version --daemon"])  # fmt: skip
    version.add_argument("--daemon", action="store_true", help="the version of the running agent")
    version.add_argument("--json", action="store_true", help="print a JSON object")


def _changing(commands: Any) -> None:
    maintenance = _add(
        commands, "maintenance", "take no new jobs while something is done here",
        "In maintenance the agent takes no new jobs; running ones go on. It survives restarts and "
        "reboots, and the server shows who asked for it, when and "
        "why. Either end may end it: the later decision counts.",
        ["edgectl maintenance on --comment 'new disk' --for 2h --wait", "edgectl maintenance off"],
    )  # fmt: skip
    switch = maintenance.add_subparsers(dest="switch", metavar="on|off", required=True, parser_class=_Parser)
    on = switch.add_parser("on", help="begin", epilog=CODES, formatter_class=argparse.RawDescriptionHelpFormatter)
    on.add_argument("--comment", metavar="TEXT", help="why, for everybody to see")
    on.add_argument("--for", dest="span", type=_span, metavar="SPAN", help="end by itself after this, e.g. 2h or 30m")
    on.add_argument("--wait", action="store_true", help="wait until the last running job has ended")
    switch.add_parser("off", help="end it", epilog=CODES, formatter_class=argparse.RawDescriptionHelpFormatter)
    drain = _add(commands, "drain", "take no new jobs until resumed", "Take no new jobs until `edgectl resume` or the "
                 "next start; running ones go on.",
                 ["edgectl drain --wait && systemctl poweroff", "edgectl drain --deadline 10m --wait"])  # fmt: skip
    drain.add_argument("--deadline", type=_span, metavar="SPAN", help="end jobs that still run after this")
    drain.add_argument("--wait", action="store_true", help="wait until the last running job has ended")
    _add(commands, "resume", "take jobs again after a drain", "End a drain.", ["edgectl resume"])
    queues = _add(commands, "queues", "show or change the queues", "Show the queues that are served, or change them "
                  "until the next restart. For good: queues in agent.toml.",
                  ["edgectl queues", "edgectl queues --add press-shop --remove default"])  # fmt: skip
    queues.add_argument("--add", action="append", metavar="QUEUE", default=[], help="serve this queue, too")
    queues.add_argument("--remove", action="append", metavar="QUEUE", default=[], help="serve it no more")
    queues.add_argument("--json", action="store_true", help="print a JSON list")
    slots = _add(commands, "concurrency", "change the number of slots", "Change the number of slots until the next "
                 "restart. For good: concurrency in agent.toml. Running jobs are never ended by this.",
                 ["edgectl concurrency 2"])  # fmt: skip
    slots.add_argument("slots", type=_slots, metavar="N", help="how many, from 1 to 1000")
    _add(commands, "reload", "read the configuration again", "Let the running agent read its configuration and "
         "credential again; what needs a restart is named.", ["edgectl reload"])  # fmt: skip


def _setting_up(commands: Any) -> None:
    enroll = _add(
        commands, "enroll", "make this machine an agent",
        "Exchange a join token for a credential of this machine's own: a key pair, whose private key is made here and "
        "stays here. Make the join token on the server: airflow edge-agents enroll --name NAME. It is asked for, read "
        "from standard input, a file, a file descriptor or a systemd credential; never give it as an argument, which "
        "others can read. The server is looked at first, and a token is used up only if all that is needed here can be "
        "written. A running agent takes the new credential up at once; one that it had before is not valid any more.",
        ["sudo edgectl enroll https://airflow.example.com",
         "sudo edgectl enroll https://airflow.example.com --name press-07 < token.txt",
         "sudo edgectl enroll --token-file token.txt",
         "sudo edgectl enroll --token-file token.txt --dry-run"],
    )  # fmt: skip
    enroll.add_argument("url", nargs="?", metavar="URL", help="Airflow's base URL (default: as configured)")
    enroll.add_argument("--name", metavar="NAME", help="name of this agent, if it is not the host's")
    source = enroll.add_mutually_exclusive_group()
    source.add_argument(
        "--token-file", type=Path, metavar="FILE", help="file with the join token; - for standard input"
    )
    source.add_argument("--token-fd", type=int, metavar="N", help="open file descriptor to read the join token from")
    source.add_argument(
        "--token-credential",
        metavar="NAME",
        help="systemd credential with the join token, see $CREDENTIALS_DIRECTORY",
    )
    enroll.add_argument(
        "--dry-run",
        action="store_true",
        help="look at the server and say what would be written; write nothing, and do not use the join token up",
    )
    enroll.add_argument("--json", action="store_true", help="print what the agent may do as a JSON object")
    config = _add(commands, "config", "check or show the configuration", "Check or show what agent.toml, conf.d/*.toml "
                  "and EDGE_AGENT_* variables say together.",
                  ["edgectl config check", "edgectl config show --origin", "edgectl config show --json"])  # fmt: skip
    what = config.add_subparsers(dest="what", metavar="check|show", required=True, parser_class=_Parser)
    check = what.add_parser("check", help="exit with 78 if it is not usable")
    check.add_argument("--quiet", action="store_true", help="say nothing if it is")
    show = what.add_parser("show", help="list all settings, secrets masked")
    show.add_argument("--origin", action="store_true", help="say where each comes from")
    show.add_argument("--json", action="store_true", help="print a JSON list")


def _task_runtime(commands: Any) -> None:
    runtime = _add(
        commands, "runtime", "add providers to the task runtime",
        "Add distributions to the packaged task runtime, from wheels alone. They are there again after each upgrade; "
        "what would change the Task SDK, or anything else that the runtime has, is refused. Running tasks keep what "
        "they have.",
        ["sudo edgectl runtime install apache-airflow-providers-ssh",
         "sudo edgectl runtime install --no-index --find-links /srv/wheels apache-airflow-providers-ssh==4.1.0",
         "sudo edgectl runtime remove apache-airflow-providers-ssh", "edgectl runtime list"],
    )  # fmt: skip
    what = runtime.add_subparsers(dest="what", metavar="install|remove|renew|list", required=True, parser_class=_Parser)
    install = what.add_parser("install", help="add, or add in another version")
    install.add_argument("names", nargs="+", metavar="NAME", help="a requirement: NAME, NAME==1.2, NAME[extra]")
    install.add_argument("--find-links", type=Path, metavar="DIR", action="append", default=[], help="look there, too")
    install.add_argument("--no-index", action="store_true", help="ask no index: for sites without internet")
    install.add_argument("--index-url", metavar="URL", help="ask this index and not PyPI")
    remove = what.add_parser("remove", help="take away, with what only that needed")
    remove.add_argument("names", nargs="+", metavar="NAME", help="as given to install")
    what.add_parser("renew", help="do again what /etc/airflow-edge-runtime/extras.txt says")
    what.add_parser("list", help="show what was added").add_argument(
        "--json", action="store_true", help="print a JSON object"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    arguments = build_parser().parse_args(argv)
    # Only now: --help answers without loading anything.
    from airflow_edge_agent.ctl import commands  # noqa: PLC0415
    from airflow_edge_agent.ctl.client import DaemonDown, Refused  # noqa: PLC0415
    from airflow_edge_agent.ctl.terminal import complain  # noqa: PLC0415

    try:
        return commands.run(arguments)
    except DaemonDown as error:
        complain(str(error))
        return DOWN
    except Refused as refusal:
        complain(str(refusal))
        return USAGE if refusal.code == "bad_request" else INTERNAL if refusal.code == "internal" else REFUSED
    except BrokenPipeError:
        # Whoever read our output has gone; nothing more to say, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
