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

_NAME = Arg(("--name",), help="Name of the agent: letters, digits, '.', '_', '-'; at most 63.", required=True)
_AGENT = Arg(("name",), help="Name of the agent.")
_TOKEN_ID = Arg(("id",), help="Id of the token: the part between 'eat_' and the next '_', as `token list` shows it.")
_SWITCH = Arg(("switch",), help="Whether the agent is to be in maintenance.", choices=("on", "off"), metavar="on|off")
_COMMENT = Arg(("--comment",), help="Why, for everyone who looks at the agent.")


def get_edge_agents_commands() -> list[GroupCommand]:
    """Return the group of commands that Airflow's command line offers."""
    token = GroupCommand(
        name="token",
        help="Manage the tokens by which agents log in",
        subcommands=(
            ActionCommand(
                name="create",
                help="Create a token for an agent and show it, this once",
                func=lazy_load_command(f"{_COMMANDS}.token_create"),
                args=(_NAME, ARG_OUTPUT, ARG_VERBOSE),
            ),
            ActionCommand(
                name="list",
                help="List the tokens, without their secrets",
                func=lazy_load_command(f"{_COMMANDS}.token_list"),
                args=(ARG_OUTPUT, ARG_VERBOSE),
            ),
            ActionCommand(
                name="revoke",
                help="Revoke a token: its agent is refused from now on",
                func=lazy_load_command(f"{_COMMANDS}.token_revoke"),
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
                token,
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
