"""Where texts of agents reach people: the server's log, and the output of commands.

Nothing in them may drive a terminal, or look like a line of ours.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from airflow_edge_agent.protocol.text import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def logger(name: str) -> logging.Logger:
    """Return the logger of a module. Whatever is filled into its messages is made visible."""
    found = logging.getLogger(name)
    if _FILTER not in found.filters:
        found.addFilter(_FILTER)
    return found


class _Visible(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(_shown(value) for value in record.args)
        return True


_FILTER = _Visible()


def _shown(value: object) -> object:
    if value is None or isinstance(value, int | float):
        return value
    return visible(str(value))


def print_rows(found: Sequence[Any], *, output: str, mapper: Callable[[Any], dict[str, Any]] | None = None) -> None:
    """Print rows as Airflow's commands do. JSON and YAML have escapes of their own for what is not shown."""
    from airflow.cli.simple_table import AirflowConsole  # noqa: PLC0415  heavy, and only for commands

    rows = [row if mapper is None else mapper(row) for row in found]
    if output in ("table", "plain"):
        rows = [{name: _cell(value, marked_up=output == "table") for name, value in row.items()} for row in rows]
    AirflowConsole().print_as(rows, output=output)


def _cell(value: object, *, marked_up: bool) -> object:
    from rich.markup import escape  # noqa: PLC0415  as above

    if not isinstance(value, str):
        return value
    return escape(visible(value)) if marked_up else visible(value)
