"""``airflow edge-agents``: the commands and their arguments.

Airflow imports this for every command line: what the commands do is in :mod:`airflow_edge_server.commands`.
"""

from __future__ import annotations

import logging

from airflow.cli.cli_config import ARG_OUTPUT, ARG_VERBOSE, ActionCommand, Arg, GroupCommand, lazy_load_command

# Airflow 3.2 shows what Alembic says when it is imported on standard output, before a command can prevent it, and
# there the commands' JSON is to go.
logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)

_COMMANDS = "airflow_edge_server.commands"

_NAME = Arg(
    ("--name",),
    help="Name of the agent: letters, digits, '.', '_', '-'; at most 63. With '*' (anything) and '?' (one character) "
    "it is good for several agents, e.g. 'press-*', and does not replace one that is enrolled already.",
    required=True,
)
_QUEUES = Arg(
    ("--queues",),
    help="Queues that the agent may serve, separated by commas; '*' for every one. Default: [operators] default_queue.",
)
_TEAM = Arg(("--team",), help="Team whose jobs the agent gets. Default: jobs of no team.")
_USES = Arg(("--uses",), help="How many times the join token may be used. Default: 1.", type=int, default=1)
_EXPIRES = Arg(("--expires",), help="How long the join token may be used: 90s, 30m, 2h, 1d. Default: 1h.", default="1h")
_SERVER_URL = Arg(("--server-url",), help="Airflow's address as the new machine reaches it. Default: [api] base_url.")
_JOBS = Arg(
    ("--jobs",),
    help="What becomes of the tasks that it runs: they finish, and tell Airflow so themselves, or they are cancelled. "
    "Default: finish.",
    choices=("finish", "cancel"),
    default="finish",
)
_AGENT = Arg(("name",), help="Name of the agent.")
_TOKEN_ID = Arg(
    ("id",), help="Id of the join token, as `join-tokens list` shows it: the part between 'eaj_' and the next '_'."
)
_SWITCH = Arg(("switch",), help="Whether the agent is to be in maintenance.", choices=("on", "off"), metavar="on|off")
_COMMENT = Arg(("--comment",), help="Why, for everyone who looks at the agent.")


def get_edge_agents_commands() -> list[GroupCommand]:
    """Return the group of commands that Airflow's command line offers."""
    join_tokens = GroupCommand(
        name="join-tokens",
        help="Manage the join tokens that `enroll` makes",
        subcommands=(
            ActionCommand(
                name="list",
                help="List the join tokens, without their secrets",
                func=lazy_load_command(f"{_COMMANDS}.join_token_list"),
                args=(ARG_OUTPUT, ARG_VERBOSE),
            ),
            ActionCommand(
                name="revoke",
                help="Let nobody in with a join token any more; agents that came with it stay",
                func=lazy_load_command(f"{_COMMANDS}.join_token_revoke"),
                args=(_TOKEN_ID, ARG_VERBOSE),
            ),
        ),
    )
    return [
        GroupCommand(
            name="edge-agents",
            help="Manage edge agents",
            description="Agents at remote sites that run tasks for the EdgeExecutor.",
            subcommands=(
                ActionCommand(
                    name="enroll",
                    help="Make a join token for a new machine, and show it, this once",
                    description="Makes a join token. `edgectl enroll` exchanges it on the new machine for a credential "
                    "of its own: a key pair whose private half never leaves that machine. The commands to run there "
                    "are printed on standard error, the token alone on standard output.",
                    func=lazy_load_command(f"{_COMMANDS}.enroll"),
                    args=(_NAME, _QUEUES, _TEAM, _USES, _EXPIRES, _SERVER_URL, ARG_OUTPUT, ARG_VERBOSE),
                ),
                join_tokens,
                ActionCommand(
                    name="revoke",
                    help="Revoke the credentials of an agent: its connection ends within two seconds",
                    description="Revokes all credentials of an agent. It cannot come back until it is enrolled again.",
                    func=lazy_load_command(f"{_COMMANDS}.revoke"),
                    args=(_AGENT, _JOBS, ARG_VERBOSE),
                ),
                ActionCommand(
                    name="list",
                    help="List the agents and how they are",
                    func=lazy_load_command(f"{_COMMANDS}.agents_list"),
                    args=(ARG_OUTPUT, ARG_VERBOSE),
                ),
                ActionCommand(
                    name="maintenance",
                    help="Put an agent into maintenance, or take it out: in maintenance it gets no new jobs",
                    func=lazy_load_command(f"{_COMMANDS}.maintenance"),
                    args=(_SWITCH, _AGENT, _COMMENT, ARG_VERBOSE),
                ),
            ),
        )
    ]
