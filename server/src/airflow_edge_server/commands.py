"""What ``airflow edge-agents`` does.

A fault ends with one line on standard error and a status that is not 0.
"""

from __future__ import annotations

import functools
import getpass
import re
import shlex
import socket
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.configuration import conf
from airflow.utils import cli as cli_utils
from airflow.utils.cli import suppress_logs_and_warning
from airflow.utils.providers_configuration_loader import providers_configuration_loaded
from airflow.utils.session import create_session
from sqlalchemy.exc import SQLAlchemyError

from airflow_edge_agent.protocol.enrolment import permitted
from airflow_edge_agent.protocol.states import CONNECTED_STATES, AgentState
from airflow_edge_server import compat, plainly
from airflow_edge_server.domain.enrolment import names_one
from airflow_edge_server.domain.versions import version_warning
from airflow_edge_server.store import agents, enrolment
from airflow_edge_server.store.db import schema_problem

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    from airflow_edge_server.store.models import EdgeAgent, EdgeAgentJoinToken

    Command = Callable[[Namespace], None]

_SPAN = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([smhd])")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


def _command(work: Command) -> Command:
    """Check the tables first, and turn faults of the database into one line."""

    @functools.wraps(work)
    def run(args: Namespace) -> None:
        try:
            if (problem := schema_problem()) is not None:
                _fail(problem)
            work(args)
        except SQLAlchemyError as error:
            # The driver's own text may hold the connection string.
            _fail(f"the metadata database refused this ({type(error).__name__}): check [database] sql_alchemy_conn")

    command: Command = cli_utils.action_cli(check_db=False)(
        suppress_logs_and_warning(providers_configuration_loaded(run))
    )
    return command


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)  # noqa: T201  a command's output
    raise SystemExit(1)


def _note(message: str) -> None:
    print(message, file=sys.stderr)  # noqa: T201  a command's output


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
    for command in commands:
        _note(f"    {command}")
    _note("")
    print(made.text)  # noqa: T201  a command's output


def enroll_commands(name: str, server_url: str | None = None) -> list[str]:
    """Return the commands that make a new machine an agent, one a line.

    :param name: name of the agent, or a pattern of names: then the machine takes its host name.
    :param server_url: Airflow's address as that machine reaches it; by default ``[api] base_url``.
    """
    url = (server_url or conf.get("api", "base_url", fallback="") or "https://AIRFLOW").rstrip("/")
    named = f" --name {name}" if names_one(name) else ""
    return [f"sudo edgectl enroll {shlex.quote(url)}{named}", "sudo systemctl enable --now edge-agent"]


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


@_command
def agents_list(args: Namespace) -> None:
    """List agents."""
    with create_session(scoped=False) as session:
        found = agents.list_agents(session)
        plainly.print_rows(found, output=args.output, mapper=_agent_row)


@_command
def maintenance(args: Namespace) -> None:
    """Ask for maintenance, or for its end."""
    on = args.switch == "on"
    with create_session(scoped=False) as session:
        agent = agents.set_maintenance(session, args.name, on=on, comment=args.comment, by=_user())
        state = None if agent is None else AgentState(agent.state)
    if state is None:
        _fail(f"there is no agent called {args.name!r}: see `airflow edge-agents list`")
    if state in CONNECTED_STATES:
        _note(f"Agent {args.name} is '{state}' and is told to {'enter' if on else 'leave'} maintenance.")
    else:
        _note(f"Agent {args.name} is not connected; its state is now '{state}'.")


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


def _agent_row(agent: EdgeAgent) -> dict[str, Any]:
    metrics = agent.metrics or {}
    versions = agent.versions or {}
    return {
        "name": agent.name,
        "state": agent.state,
        "host": agent.hostname or "",
        "queues": ",".join(permitted(agent.queues or [], agent.granted_queues)),
        "refused_queues": ",".join(
            sorted(set(agent.queues or ()) - set(permitted(agent.queues or (), agent.granted_queues)))
        ),
        "team": agent.team_name or "",
        "revoked": _time(agent.revoked_at),
        "slots": f"{agent.slots_used}/{agent.slots_total}",
        "last_contact": _time(agent.last_contact_at),
        "seconds_ago": "" if agent.last_contact_at is None else str(_age(agent.last_contact_at)),
        "versions": " ".join(f"{name} {value}" for name, value in versions.items() if value),
        "cpu_percent": _number(metrics.get("cpu_percent")),
        "memory_percent": _share(metrics, "memory_used_bytes", "memory_total_bytes"),
        "disk_percent": _share(metrics, "state_disk_used_bytes", "state_disk_total_bytes"),
        "problem": agent.problem or "",
        "warning": version_warning(versions, compat.airflow_version()) or "",
        "maintenance": _maintenance(agent),
    }


def _maintenance(agent: EdgeAgent) -> str:
    if agent.maintenance_since is None or not (agent.maintenance_wanted or "maintenance" in agent.state):
        return ""
    text = f"since {_time(agent.maintenance_since)} by {agent.maintenance_by or 'unknown'}"
    return f"{text}: {agent.maintenance_comment}" if agent.maintenance_comment else text


def _time(moment: datetime | None) -> str:
    return "" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _age(moment: datetime) -> int:
    return max(0, round((datetime.now(UTC) - moment).total_seconds()))


def _number(value: Any) -> str:
    return f"{value:.0f}" if isinstance(value, int | float) else ""


def _share(metrics: dict[str, Any], used: str, total: str) -> str:
    part, whole = metrics.get(used), metrics.get(total)
    return _number(100 * part / whole) if isinstance(part, int) and isinstance(whole, int) and whole else ""


def _seconds(span: str) -> float:
    found = _SPAN.fullmatch(span.strip())
    if found is None:
        _fail(f"{span!r} is no span of time: write 90s, 30m, 2h or 1d")
    return float(found[1]) * _UNITS[found[2]]


def _origin() -> str:
    return f"command line on {socket.gethostname()}"


def _user() -> str | None:
    try:
        return getpass.getuser()[:200]
    except (OSError, KeyError):
        # A user id without an entry in the user database, as in some containers.
        return None
