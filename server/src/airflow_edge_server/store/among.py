"""Conditions on many names at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, String, Uuid, any_, literal
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import InstrumentedAttribute, Session


def among(session: Session, column: InstrumentedAttribute[Any], values: Sequence[Any]) -> ColumnElement[bool]:
    """Return the condition that a column of texts or UUIDs has one of these values.

    Where the database knows arrays they are one parameter: the statement stays the same however many there are, and is
    neither made nor planned anew for each number of agents.
    """
    if session.get_bind().dialect.name == "postgresql":
        kind = column.type if isinstance(column.type, Uuid) else String()
        condition: ColumnElement[bool] = column == any_(literal(list(values), ARRAY(kind)))
        return condition
    return column.in_(values)
