"""How a command reaches the fleet, and how it shows what it has found.

Beside Airflow it goes through the metadata database, from elsewhere through the HTTP admin API.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_edge_server import plainly
from airflow_edge_server.admin import models
from airflow_edge_server.admin.actions import Actor
from airflow_edge_server.admin.fleet import Fleet, FleetError, LocalFleet
from airflow_edge_server.console import current_user, fail, note, origin
from airflow_edge_server.store.db import schema_problem
from airflow_edge_server.store.transaction import airflow_sessions

if TYPE_CHECKING:
    from argparse import Namespace

URL_VARIABLE = "AIRFLOW_EDGE_AGENTS_URL"
TOKEN_VARIABLE = "AIRFLOW_EDGE_AGENTS_TOKEN"  # noqa: S105  a name


@contextlib.contextmanager
def open_fleet(args: Namespace) -> Iterator[Fleet]:
    """Yield the fleet that the arguments mean; what cannot be asked or done of it ends the command."""
    url = args.url or os.environ.get(URL_VARIABLE)
    try:
        if not url:
            if (problem := schema_problem()) is not None:
                fail(problem)
            yield LocalFleet(airflow_sessions, Actor(current_user() or "unknown", origin()))
            return
        from airflow_edge_server.admin.remote import RemoteFleet  # noqa: PLC0415  not needed beside Airflow

        with contextlib.closing(RemoteFleet(url, _token(args))) as remote:
            yield remote
    except FleetError as error:
        fail(str(error))


def _token(args: Namespace) -> str:
    if args.token_file is not None:
        try:
            token = Path(args.token_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            fail(f"the token cannot be read from {args.token_file}: {error}")
    else:
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token or not token.isascii() or not token.isprintable():
        fail(f"no token: set {TOKEN_VARIABLE} or give --token-file; POST /auth/token of the api-server makes one")
    return token


def print_rows(args: Namespace, rows: Iterable[dict[str, Any]]) -> None:
    """Print rows on standard output, in the form that is wanted."""
    plainly.print_rows(list(rows), output=args.output)


def tell(args: Namespace, what: str, results: Sequence[models.Done], *, dry_run: bool = False) -> None:
    """Say what became of each of several orders, and end with 1 if one of them failed.

    :param what: the kind of what was ordered, e.g. ``Agent``.
    """
    prefix = "would be done: " if dry_run else ""
    if args.output in {"json", "yaml"}:
        print_rows(args, (one.model_dump(mode="json") for one in results))
    else:
        for one in results:
            note(f"{what} {one.name} {prefix}{one.message}" if one.ok else f"error: {one.message}")
    if not all(one.ok for one in results):
        raise SystemExit(1)
