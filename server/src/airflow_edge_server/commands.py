"""What ``airflow edge-agents`` does.

A fault ends with one line on standard error and a status that is not 0.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from airflow.configuration import conf
from airflow.utils.session import create_session

from airflow_edge_server import plainly
from airflow_edge_server.console import command
from airflow_edge_server.console import current_user as _user
from airflow_edge_server.console import fail as _fail
from airflow_edge_server.console import note as _note
from airflow_edge_server.console import origin as _origin
from airflow_edge_server.console import seconds_of as _seconds
from airflow_edge_server.console import show_time as _time
from airflow_edge_server.domain.enrolment import enroll_command
from airflow_edge_server.store import enrolment
from airflow_edge_server.store.db import schema_problem

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    from airflow_edge_server.store.models import EdgeAgentJoinToken

    Command = Callable[[Namespace], None]


def _command(work: Command) -> Command:
    """Make a command of a function; the tables are checked first."""

    @functools.wraps(work)
    def run(args: Namespace) -> None:
        if (problem := schema_problem()) is not None:
            _fail(problem)
        work(args)

    return command(run)


@_command
def enroll(args: Namespace) -> None:
    """Make a join token; alone on standard output unless JSON is wanted."""
    queues = [queue.strip() for queue in (args.queues or conf.get("operators", "default_queue")).split(",")]
    seconds = _seconds(args.expires)
    try:
        with create_session(scoped=False) as session:
            made = enrolment.create_join_token(
                session,
                name_pattern=args.name,
                queues=queues,
                team=args.team,
                uses=args.uses,
                valid_seconds=seconds,
                by=_user(),
                origin=_origin(),
            )
    except ValueError as error:
        _fail(str(error))
    commands = enroll_commands(args.name, args.server_url)
    if args.output in {"json", "yaml"}:
        told = {"id": made.id, "token": made.text, "expires": _time(made.expires_at), "commands": commands}
        plainly.print_rows([told], output=args.output)
        return
    _note(f"On the new machine, before {_time(made.expires_at)} (it asks for the join token below, shown this once):\n")
    for line in commands:
        _note(f"    {line}")
    _note("")
    print(made.text)  # noqa: T201  a command's output


def enroll_commands(name: str, server_url: str | None = None) -> list[str]:
    """Return the commands that make a new machine an agent, one a line.

    :param name: name of the agent, or a pattern of names: then the machine takes its host name.
    :param server_url: Airflow's address as that machine reaches it; by default ``[api] base_url``.
    """
    url = server_url or conf.get("api", "base_url", fallback="") or "https://AIRFLOW"
    return [f"sudo {enroll_command(url, name)}", "sudo systemctl enable --now edge-agent"]


@_command
def join_token_list(args: Namespace) -> None:
    """List join tokens."""
    with create_session(scoped=False) as session:
        found = enrolment.list_join_tokens(session)
        plainly.print_rows(found, output=args.output, mapper=_join_token_row)


@_command
def join_token_revoke(args: Namespace) -> None:
    """Revoke a join token."""
    token_id = args.id
    if token_id.startswith("eaj_"):
        # Somebody pasted the whole token: it must not be repeated in any output.
        token_id = token_id.split("_")[1]
    with create_session(scoped=False) as session:
        done = enrolment.revoke_join_token(session, token_id, by=_user(), origin=_origin())
    if done is None:
        _fail(f"there is no join token with the id {token_id!r}: see `airflow edge-agents join-tokens list`")
    _note(f"Join token {token_id} is revoked." if done else f"Join token {token_id} was revoked before.")


@_command
def revoke(args: Namespace) -> None:
    """Revoke an agent."""
    with create_session(scoped=False) as session:
        count = enrolment.revoke_agent(session, args.name, jobs=args.jobs, by=_user(), origin=_origin())
    if count is None:
        _fail(f"there is no agent called {args.name!r}: see `airflow edge-agents list`")
    _note(f"Agent {args.name} is revoked." if count else f"Agent {args.name} had no valid credential.")


def _join_token_row(token: EdgeAgentJoinToken) -> dict[str, Any]:
    return {
        "id": token.id,
        "names": token.name_pattern,
        "queues": ",".join(token.queues),
        "team": token.team_name or "",
        "uses_left": str(token.uses_left),
        "expires": _time(token.expires_at),
        "created": _time(token.created_at),
        "created_by": token.created_by or "",
        "used": _time(token.used_at),
        "revoked": _time(token.revoked_at),
    }
