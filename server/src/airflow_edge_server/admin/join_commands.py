"""``airflow edge-agents enroll`` and ``join-tokens``: who may become an agent.

A fault ends with one line on standard error and a status that is not 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.configuration import conf
from pydantic import ValidationError

from airflow_edge_server.admin import models
from airflow_edge_server.admin.fleet import FleetError
from airflow_edge_server.admin.reach import open_fleet, print_rows, tell
from airflow_edge_server.console import command, fail, fault_of, note, seconds_of, show_time
from airflow_edge_server.domain.enrolment import matches

if TYPE_CHECKING:
    from argparse import Namespace

_PREFIX = "eaj_"


@command
def enroll(args: Namespace) -> None:
    """Make a join token; alone on standard output unless JSON is wanted."""
    queues = [queue.strip() for queue in (args.queues or conf.get("operators", "default_queue")).split(",")]
    try:
        asked = models.JoinTokenOrder(
            name_pattern=args.name,
            queues=queues,
            valid_seconds=seconds_of(args.expires),
            team=args.team,
            uses=args.uses,
            server_url=args.server_url,
        )
    except ValidationError as error:
        fail(fault_of(error))
    with open_fleet(args) as fleet:
        made = fleet.create_join_token(asked)
    # Without one that is named, what all platforms with our packages have in common.
    commands = made.commands[args.platform] if args.platform else made.commands["deb"][1:]
    if args.output in {"json", "yaml"}:
        told = {"id": made.id, "token": made.token, "expires": show_time(made.expires_at), "commands": commands}
        print_rows(args, [told])
        return
    note(f"On the new machine, before {show_time(made.expires_at)} (it asks for the join token below, shown once):\n")
    for line in commands:
        note(f"    {line}")
    note("")
    print(made.token)  # noqa: T201  a command's output


@command
def join_token_list(args: Namespace) -> None:
    """List join tokens."""
    with open_fleet(args) as fleet:
        found = fleet.join_tokens().items
    print_rows(args, (_row(token) for token in found if _is_meant(token, args) and (token.usable or not args.usable)))


@command
def join_token_revoke(args: Namespace) -> None:
    """Revoke join tokens."""
    ids = [_id(text) for text in args.ids]
    if not (ids or args.name or args.queue):
        fail("which join tokens? Give their ids, or say --name or --queue")
    with open_fleet(args) as fleet:
        known = {token.id: token for token in fleet.join_tokens().items}
        if not ids:
            ids = [token.id for token in known.values() if token.usable and _is_meant(token, args)]
        results = []
        for token_id in dict.fromkeys(ids):
            if token_id not in known:
                results.append(_unknown(token_id))
            elif not _is_meant(known[token_id], args):
                results.append(_other(token_id))
            elif args.dry_run:
                before = known[token_id].revoked_at is not None
                message = "was revoked before" if before else "lets nobody in any more"
                results.append(models.Done(name=token_id, ok=True, message=message))
            else:
                try:
                    results.append(fleet.revoke_join_token(token_id))
                except FleetError as error:
                    results.append(models.Done(name=token_id, ok=False, message=str(error)))
    if not results:
        note("There is no such join token that still lets somebody in.")
    tell(args, "Join token", results, dry_run=args.dry_run)


def _id(text: str) -> str:
    # Somebody pasted the whole token: it must not be repeated in any output.
    return text.split("_")[1] if text.startswith(_PREFIX) else text


def _unknown(token_id: str) -> models.Done:
    message = f"there is no join token with the id {token_id!r}: see `airflow edge-agents join-tokens list`"
    return models.Done(name=token_id, ok=False, message=message, code="not_found")


def _other(token_id: str) -> models.Done:
    return models.Done(name=token_id, ok=False, message=f"join token {token_id} is not for that name and queue")


def _is_meant(token: models.JoinTokenItem, args: Namespace) -> bool:
    named = args.name is None or matches(args.name, token.name_pattern)
    return named and (args.queue is None or args.queue in token.queues)


def _row(token: models.JoinTokenItem) -> dict[str, Any]:
    return {
        "id": token.id,
        "names": token.name_pattern,
        "queues": ",".join(token.queues),
        "team": token.team or "",
        "uses_left": str(token.uses_left),
        "usable": "yes" if token.usable else "no",
        "expires": show_time(token.expires_at),
        "created": show_time(token.created_at),
        "created_by": token.created_by or "",
        "used": show_time(token.used_at),
        "revoked": show_time(token.revoked_at),
    }
