"""Join tokens, and the commands by which a new machine joins."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from airflow_edge_server import compat
from airflow_edge_server.admin import models
from airflow_edge_server.admin.actions import Actor, ConflictError
from airflow_edge_server.admin.views import NotFoundError, is_of
from airflow_edge_server.domain.enrolment import enroll_command
from airflow_edge_server.store import enrolment
from airflow_edge_server.store.fleet import Teams
from airflow_edge_server.store.models import EdgeAgent, EdgeAgentJoinToken

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


def list_join_tokens(session: Session, teams: Teams = None) -> models.JoinTokenList:
    """Return join tokens, newest first, without their secrets."""
    now = datetime.now(UTC)
    rows = enrolment.list_join_tokens(session)
    return models.JoinTokenList(items=[_item(row, now) for row in rows if is_of(row.team_name, teams)])


def _item(row: EdgeAgentJoinToken, now: datetime) -> models.JoinTokenItem:
    usable = row.revoked_at is None and row.uses_left > 0 and row.expires_at > now
    return models.JoinTokenItem(
        id=row.id,
        name_pattern=row.name_pattern,
        queues=list(row.queues),
        team=row.team_name,
        uses_left=row.uses_left,
        usable=usable,
        expires_at=row.expires_at,
        created_at=row.created_at,
        created_by=row.created_by,
        used_at=row.used_at,
        revoked_at=row.revoked_at,
    )


def list_teams(session: Session, teams: Teams = None) -> models.TeamList:
    """Return the teams whose agents may be made."""
    there = compat.team_names(session)
    return models.TeamList(enabled=there is not None, items=[team for team in there or [] if is_of(team, teams)])


def create_join_token(
    session: Session, asked: models.JoinTokenOrder, actor: Actor, *, server_url: str
) -> models.NewJoinToken:
    """Make a join token; its text is in the answer, and nowhere else.

    :param server_url: base URL of the api-server, as agents reach it if nothing else was asked for.
    :raises ConflictError: in one line, what is wrong with what was asked for.
    """
    teams = list_teams(session, actor.teams)
    if asked.team is not None and teams.enabled and asked.team not in teams.items:
        there = f"there are {', '.join(teams.items)}" if teams.items else "there is none, see `airflow teams create`"
        raise ConflictError(f"there is no team {asked.team!r}: {there}")
    # A token for exactly one name takes it over from the agent that has it.
    taken = session.get(EdgeAgent, asked.name_pattern)
    if taken is not None and not is_of(taken.team_name, actor.teams):
        raise ConflictError(f"{asked.name_pattern} is the name of an agent of another team")
    try:
        made = enrolment.create_join_token(
            session,
            name_pattern=asked.name_pattern,
            queues=asked.queues,
            valid_seconds=asked.valid_seconds,
            team=asked.team,
            uses=asked.uses,
            by=actor.name,
            origin=actor.origin,
        )
    except ValueError as error:
        raise ConflictError(str(error)) from None
    commands = join_commands((asked.server_url or server_url).rstrip("/"), asked)
    return models.NewJoinToken(id=made.id, token=made.text, expires_at=made.expires_at, commands=commands)


def revoke_join_token(session: Session, token_id: str, actor: Actor) -> models.Done:
    """Let nobody in with a join token any more.

    :raises NotFoundError: when there is no such join token that the actor may change.
    """
    row = session.get(EdgeAgentJoinToken, token_id)
    if row is None or not is_of(row.team_name, actor.teams):
        raise NotFoundError(f"there is no join token {token_id}")
    done = enrolment.revoke_join_token(session, token_id, by=actor.name, origin=actor.origin)
    message = "lets nobody in any more" if done else "was revoked before"
    return models.Done(name=token_id, ok=True, message=message)


def join_commands(server_url: str, asked: models.JoinTokenOrder) -> dict[models.Platform, list[str]]:
    """Return the commands for a new machine, by platform. The token is typed in, never part of a command."""
    enroll = enroll_command(server_url, asked.name_pattern)
    check = "sudo systemctl enable --now edge-agent && edgectl status"
    return {
        "deb": ["sudo apt-get install airflow-edge-agent airflow-edge-runtime", f"sudo {enroll}", check],
        "rpm": ["sudo dnf install airflow-edge-agent airflow-edge-runtime", f"sudo {enroll}", check],
        "manual": ["pip install airflow-edge-agent", enroll, "edge-agent run"],
    }
