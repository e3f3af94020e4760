"""``airflow edge-agents``: the commands and their arguments.

Airflow imports this for every command line: what the commands do is in :mod:`airflow_edge_server.admin`.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable

from airflow.cli.cli_config import (
    ARG_OUTPUT,
    ARG_SSL_CERT,
    ARG_SSL_KEY,
    ARG_VERBOSE,
    ActionCommand,
    Arg,
    GroupCommand,
    lazy_load_command,
    positive_int,
)
from airflow.configuration import conf

# Airflow 3.2 shows what Alembic says when it is imported on standard output, before a command can prevent it, and
# there the commands' JSON is to go.
logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)

_JOINING = "airflow_edge_server.admin.join_commands"
_FLEET = "airflow_edge_server.admin.commands"

_NAME = Arg(
    ("--name",),
    help="Name of the agent: letters, digits, '.', '_', '-'; at most 63. With '*' (anything) and '?' (one character) "
    "it is good for several agents, e.g. 'press-*', and does not replace one that is enrolled already.",
    required=True,
)
_QUEUES = Arg(
    ("--queues",),
    help="Queues that the agent may serve, separated by commas; '*' for every one. Default: operators.default_queue of "
    "airflow.cfg.",
)
_TEAM = Arg(("--team",), help="Team whose jobs the agent gets. Default: jobs of no team.")
_USES = Arg(("--uses",), help="How many times the join token may be used. Default: 1.", type=int, default=1)
_EXPIRES = Arg(("--expires",), help="How long the join token may be used: 90s, 30m, 2h, 1d. Default: 1h.", default="1h")
_SERVER_URL = Arg(
    ("--server-url",),
    help="Airflow's address as the new machine reaches it. Default: api.base_url of airflow.cfg.",
)
_PLATFORM = Arg(
    ("--platform",),
    help="Show all commands for a machine with these packages. Default: only those that all have in common.",
    choices=("deb", "rpm", "manual"),
)
_JOBS = Arg(
    ("--jobs",),
    help="What becomes of the jobs that it holds: it is let in until they have finished, or they are cancelled. "
    "Default: finish.",
    choices=("finish", "cancel"),
    default="finish",
)
_AGENT = Arg(("name",), help="Name of the agent.")
_AGENTS = Arg(("names",), nargs="*", metavar="NAME", help="Names of agents, or patterns with * and ?.")
_WITH_QUEUE = Arg(("--queue",), help="Only agents that serve this queue.")
_WITH_STATE = Arg(
    ("--state",), action="append", help="Only agents in this state, e.g. idle; may be given several times."
)
_DRY_RUN = Arg(("--dry-run",), action="store_true", help="Only say what would be done.")
_URL = Arg(
    ("--url",),
    help="Base URL of the api-server, to go through its HTTP admin API instead of the metadata database. Also: "
    "AIRFLOW_EDGE_AGENTS_URL. The token comes from AIRFLOW_EDGE_AGENTS_TOKEN or --token-file.",
)
_TOKEN_FILE = Arg(("--token-file",), help="File with a token of the api-server, as POST /auth/token gives it.")
_WHERE = (_URL, _TOKEN_FILE, ARG_OUTPUT, ARG_VERBOSE)
_WHOM = (_AGENTS, _WITH_QUEUE, _WITH_STATE)
_ORDER = (*_WHOM, _DRY_RUN, *_WHERE)
_WHICH_JOBS = (
    Arg(("--state",), dest="job_state", action="append", help="queued, offered, accepted, running or finished."),
    Arg(("--queue",), help="Only jobs of this queue."),
    Arg(("--agent",), help="Only jobs of this agent, or of all that match a pattern with * and ?."),
    Arg(("--dag-id",), help="Only jobs of this Dag."),
)


def _up_to(most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        found: int = positive_int(allow_zero=False)(text)
        if found > most:
            raise argparse.ArgumentTypeError(f"{found} is more than {most}")
        return found

    return number


_LIMIT = Arg(("--limit",), type=_up_to(1_000), default=100, help="Most entries to show, up to 1000. Default: 100.")
_SWITCH = Arg(("switch",), help="Whether the agent is to be in maintenance.", choices=("on", "off"), metavar="on|off")
_COMMENT = Arg(("--comment",), help="Why, for everyone who looks at the agent.")


def get_edge_agents_commands() -> list[GroupCommand]:
    """Return the group of commands that Airflow's command line offers."""
    return [
        GroupCommand(
            name="edge-agents",
            help="Manage edge agents",
            description="Agents at remote sites that run tasks for the EdgeExecutor.",
            subcommands=(
                *_joining(),
                *_looking(),
                *_changing(),
                _serving(),
            ),
        )
    ]


def _joining() -> tuple[ActionCommand | GroupCommand, ...]:
    for_name = Arg(("--name",), help="Only those for this name, with * and ? for those that match, e.g. 'press-*'.")
    with_queue = Arg(("--queue",), help="Only those that grant this queue.")
    return (
        ActionCommand(
            name="enroll",
            help="Make a join token for a new machine, and show it, this once",
            description="Makes a join token. `edgectl enroll` exchanges it on the new machine for a credential "
            "of its own: a key pair whose private half never leaves that machine. The commands to run there "
            "are printed on standard error, the token alone on standard output.",
            func=lazy_load_command(f"{_JOINING}.enroll"),
            args=(_NAME, _QUEUES, _TEAM, _USES, _EXPIRES, _SERVER_URL, _PLATFORM, *_WHERE),
        ),
        GroupCommand(
            name="join-tokens",
            help="Manage the join tokens that `enroll` makes",
            subcommands=(
                ActionCommand(
                    name="list",
                    help="List the join tokens, without their secrets",
                    func=lazy_load_command(f"{_JOINING}.join_token_list"),
                    args=(
                        for_name,
                        with_queue,
                        Arg(("--usable",), action="store_true", help="Only those that still let somebody in."),
                        *_WHERE,
                    ),
                ),
                ActionCommand(
                    name="revoke",
                    help="Let nobody in with a join token any more; agents that came with it stay",
                    func=lazy_load_command(f"{_JOINING}.join_token_revoke"),
                    args=(
                        Arg(
                            ("ids",),
                            nargs="*",
                            metavar="ID",
                            help="Ids of join tokens, as `join-tokens list` shows them: the part between 'eaj_' and "
                            "the next '_'. Without any: all that still let somebody in, for that name and queue.",
                        ),
                        for_name,
                        with_queue,
                        _DRY_RUN,
                        *_WHERE,
                    ),
                ),
            ),
        ),
        _command(
            "revoke",
            "Revoke the credentials of agents: they are shut out within two seconds, or when their jobs have finished, "
            "and cannot come back until they are enrolled again",
            "revoke",
            _AGENTS,
            _JOBS,
            _WITH_QUEUE,
            _WITH_STATE,
            _DRY_RUN,
            *_WHERE,
        ),
    )


def _looking() -> tuple[ActionCommand, ...]:
    return (
        _command("overview", "Show the fleet at a glance", "overview", *_WHERE),
        _command("list", "List the agents and how they are", "agents_list", *_WHOM, *_WHERE),
        _command("show", "Show one agent in full", "show", _AGENT, *_WHERE),
        _command("events", "List what happened to an agent, newest first", "events", _AGENT, _LIMIT, *_WHERE),
        _command(
            "metrics",
            "Show how an agent's host was, minute by minute",
            "metrics",
            _AGENT,
            Arg(("--minutes",), type=_up_to(60 * 24 * 31), default=60, help="How far back. Default: 60."),
            *_WHERE,
        ),
        _command("queues", "List the queues: what waits, and who serves them", "queues", *_WHERE),
        _command(
            "jobs",
            "List jobs, newest first, and why those that wait do so",
            "jobs",
            *_WHICH_JOBS,
            _LIMIT,
            *_WHERE,
        ),
    )


def _changing() -> tuple[ActionCommand, ...]:
    return (
        _command(
            "maintenance",
            "Put agents into maintenance, or take them out: in maintenance they get no new jobs",
            "maintenance",
            _SWITCH,
            _AGENTS,
            _COMMENT,
            Arg(("--for",), dest="for_time", help="How long, e.g. 90m or 2h; without it, until somebody ends it."),
            _WITH_QUEUE,
            _WITH_STATE,
            _DRY_RUN,
            *_WHERE,
        ),
        _command("drain", "Offer agents no more jobs, until they are resumed", "drain", *_ORDER),
        _command("resume", "Offer agents jobs again", "resume", *_ORDER),
        _command(
            "concurrency",
            "Let agents run so many jobs at a time",
            "concurrency",
            Arg(("slots",), help="A number; or 'default': as each is configured itself."),
            *_ORDER,
        ),
        _command(
            "serve",
            "Let agents serve more queues than they are configured with, or fewer",
            "serve",
            Arg(("--add",), action="append", metavar="QUEUE", help="A queue to serve as well."),
            Arg(("--remove",), action="append", metavar="QUEUE", help="A queue not to serve."),
            Arg(("--reset",), action="store_true", help="First forget what was added and removed before."),
            *_ORDER,
        ),
        _command("remove", "Forget agents that are offline, with their credentials", "remove", *_ORDER),
        _command(
            "cancel",
            "End jobs; Airflow takes this try of their tasks for failed",
            "cancel",
            Arg(("ids",), nargs="*", metavar="ID", help="Ids of jobs, as `jobs` shows them."),
            *_WHICH_JOBS,
            Arg(("--reason",), help="Why, for the log of the task."),
            _DRY_RUN,
            *_WHERE,
        ),
    )


def _serving() -> ActionCommand:
    return ActionCommand(
        name="api-server",
        help="Serve the agent API, and nothing else of Airflow, as a process of its own",
        description="Serves the agent API, so that agents do not compete with Airflow's UI. Any number of these may "
        "run, behind a proxy, beside the api-server. /health answers 200 while agents can be served.",
        func=lazy_load_command("airflow_edge_server.api_server.api_server"),
        args=(
            Arg(("--host",), help="Address to listen on. Default: 127.0.0.1.", default="127.0.0.1"),
            Arg(
                ("--port",), help="Port to listen on. Default: 8085.", type=positive_int(allow_zero=False), default=8085
            ),
            Arg(("--uds",), metavar="PATH", help="Listen on this unix socket instead; open to its owner and group."),
            Arg(("--workers",), help="Processes. Default: 1.", type=positive_int(allow_zero=False), default=1),
            Arg(
                ("--proxy-headers",),
                action="store_true",
                help="Believe a proxy's X-Forwarded-For and X-Forwarded-Proto about where requests come from.",
            ),
            Arg(
                ("--forwarded-allow-ips",),
                metavar="ADDRESSES",
                help="Proxies to believe: addresses and networks, separated by commas, or '*'. Default: "
                "FORWARDED_ALLOW_IPS, else 127.0.0.1; with --uds: whoever connects.",
            ),
            ARG_SSL_CERT,
            ARG_SSL_KEY,
            # As those of Airflow 3.3's api-server; 3.2 has none.
            Arg(
                ("--ssl-ca-file",),
                metavar="PATH",
                help="Authorities whose certificates clients may show. Default: api.ssl_ca_file of airflow.cfg.",
                default=conf.get("api", "ssl_ca_file", fallback=None),
            ),
            Arg(
                ("--ssl-cert-reqs",),
                help="Whether clients have to show a certificate. Default: api.ssl_cert_reqs of airflow.cfg, or none.",
                choices=("none", "optional", "required"),
                default=conf.get("api", "ssl_cert_reqs", fallback="none"),
            ),
            ARG_VERBOSE,
        ),
    )


def _command(name: str, help_text: str, function: str, *args: Arg) -> ActionCommand:
    return ActionCommand(name=name, help=help_text, func=lazy_load_command(f"{_FLEET}.{function}"), args=args)
