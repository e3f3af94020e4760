"""What the commands of ``airflow edge-agents`` have in common: how they fail, and how they speak."""

from __future__ import annotations

import functools
import getpass
import re
import socket
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn

from airflow.utils import cli as cli_utils
from airflow.utils.cli import suppress_logs_and_warning
from airflow.utils.providers_configuration_loader import providers_configuration_loaded
from sqlalchemy.exc import SQLAlchemyError

from airflow_edge_agent.protocol.text import visible

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    from pydantic import ValidationError

    Command = Callable[[Namespace], None]


_SPAN = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([smhd])")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


def command(work: Command) -> Command:
    """Make a command of a function; faults of the database become one line."""

    @functools.wraps(work)
    def run(args: Namespace) -> None:
        _check_text(args)
        try:
            work(args)
        except SQLAlchemyError as error:
            # The driver's own text may hold the connection string.
            fail(f"the metadata database refused this ({type(error).__name__}): check [database] sql_alchemy_conn")

    made: Command = cli_utils.action_cli(check_db=False)(suppress_logs_and_warning(providers_configuration_loaded(run)))
    return made


def _check_text(args: Namespace) -> None:
    """Refuse bytes that are no UTF-8, which neither a database nor a URL can hold."""
    for given in vars(args).values():
        for text in given if isinstance(given, list) else [given]:
            if isinstance(text, str) and any("\ud800" <= letter <= "\udfff" for letter in text):
                fail(f"{text!a} is no UTF-8")


def fail(message: str) -> NoReturn:
    """End with one line on standard error."""
    print(f"error: {visible(message)}", file=sys.stderr)  # noqa: T201  a command's output
    raise SystemExit(1)


def note(message: str) -> None:
    """Tell people something that programs which read the output need not know."""
    print(visible(message, keep="\n"), file=sys.stderr)  # noqa: T201  a command's output


def fault_of(error: ValidationError) -> str:
    """Say in one line what is wrong first with what was given, without repeating it."""
    fault = error.errors(include_input=False, include_url=False)[0]
    if fault["loc"][0] in {"add", "remove", "queues"} and fault["type"] == "string_pattern_mismatch":
        return "a queue's name has 1 to 256 characters, no comma among them, and does not begin with a space"
    return f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"


def show_time(moment: datetime | None) -> str:
    """Write a time, in UTC."""
    return "" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def age(moment: datetime) -> int:
    """Return how many seconds ago that was."""
    return max(0, round((datetime.now(UTC) - moment).total_seconds()))


def current_user() -> str | None:
    """Return who runs the command, as the system knows it."""
    try:
        return getpass.getuser()[:200]
    except (OSError, KeyError):
        # A user id without an entry in the user database, as in some containers.
        return None


def origin() -> str:
    """Return from where a command comes, for the audit log."""
    return f"command line on {socket.gethostname()}"


def seconds_of(span: str) -> float:
    """Read a span of time, or end the command."""
    found = _SPAN.fullmatch(span.strip())
    if found is None:
        fail(f"{span!r} is no span of time: write 90s, 30m, 2h or 1d")
    return float(found[1]) * _UNITS[found[2]]
