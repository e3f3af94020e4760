"""What ``airflow edge-agents`` does.

A fault ends with one line on standard error and a status that is not 0.
"""

from __future__ import annotations

import functools
import getpass
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.utils import cli as cli_utils
from airflow.utils.cli import suppress_logs_and_warning
from airflow.utils.providers_configuration_loader import providers_configuration_loaded
from airflow.utils.session import create_session
from sqlalchemy.exc import SQLAlchemyError

from airflow_edge_agent.protocol.states import CONNECTED_STATES, AgentState
from airflow_edge_server import compat, plainly
from airflow_edge_server.domain.versions import version_warning
from airflow_edge_server.store import agents, tokens
from airflow_edge_server.store.db import schema_problem

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    from airflow_edge_server.store.models import EdgeAgent, EdgeAgentToken

    Command = Callable[[Namespace], None]


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
def token_create(args: Namespace) -> None:
    """Create a token; alone on standard output unless a person is looking on."""
    if not agents.is_agent_name(args.name):
        _fail(
            f"{args.name!r} is no agent name: it must begin with a letter or digit, followed by at most 62 letters, "
            "digits, '.', '_' or '-'"
        )
    with create_session(scoped=False) as session:
        agents.ensure_agent(session, args.name)
        text = tokens.create_token(session, args.name, created_by=_user())
    if args.output in {"json", "yaml"}:
        plainly.print_rows([{"name": args.name, "id": text.split("_")[1], "token": text}], output=args.output)
        return
    _note(f"Token for agent {args.name}. It is shown this once: put it into the agent's token file.")
    print(text)  # noqa: T201  a command's output


@_command
def token_list(args: Namespace) -> None:
    """List tokens."""
    with create_session(scoped=False) as session:
        found = tokens.list_tokens(session)
        plainly.print_rows(found, output=args.output, mapper=_token_row)


@_command
def token_revoke(args: Namespace) -> None:
    """Revoke a token."""
    token_id = args.id
    if token_id.startswith("eat_"):
        # Somebody pasted the whole token: it must not be repeated in any output.
        token_id = token_id.split("_")[1]
    with create_session(scoped=False) as session:
        done = tokens.revoke_token(session, token_id)
    if done is None:
        _fail(f"there is no token with the id {token_id!r}: see `airflow edge-agents token list`")
    _note(f"Token {token_id} is revoked." if done else f"Token {token_id} was revoked before.")


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


def _token_row(token: EdgeAgentToken) -> dict[str, Any]:
    return {
        "id": token.id,
        "agent": token.agent_name,
        "created": _time(token.created_at),
        "created_by": token.created_by or "",
        "revoked": _time(token.revoked_at),
    }


def _agent_row(agent: EdgeAgent) -> dict[str, Any]:
    metrics = agent.metrics or {}
    versions = agent.versions or {}
    return {
        "name": agent.name,
        "state": agent.state,
        "host": agent.hostname or "",
        "queues": ",".join(agent.queues or []),
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


def _user() -> str | None:
    try:
        return getpass.getuser()[:200]
    except (OSError, KeyError):
        # A user id without an entry in the user database, as in some containers.
        return None
