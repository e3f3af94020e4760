"""Writes what has changed of many rows with one statement, where the database can take them as arrays."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from typing import cast as cast_type

from sqlalchemy import JSON, ColumnElement, String, Table, Text, Update, bindparam, cast, column, func, update
from sqlalchemy import inspect as inspect_row
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.sql.selectable import TableValuedAlias
from sqlalchemy.types import TypeEngine

from airflow_edge_server.store.models import Base, EdgeAgent, EdgeAgentJob

KEYS = {EdgeAgent: "name", EdgeAgentJob: "id"}


def takes_arrays(session: Session) -> bool:
    """Tell whether the database takes many rows as one array for each column."""
    return session.get_bind().dialect.name == "postgresql"


def rows_of(types: Mapping[str, TypeEngine[Any]]) -> TableValuedAlias:
    """Return a table named ``new`` of what a statement is given: an array for each column, as ``new_`` and its name."""
    arrays = [
        cast(bindparam(f"new_{name}", type_=ARRAY(_sent(kind))), ARRAY(_sent(kind))) for name, kind in types.items()
    ]
    columns = [column(name, _sent(kind)) for name, kind in types.items()]
    return func.unnest(*arrays).table_valued(*columns).render_derived(name="new")


def given(new: TableValuedAlias, name: str, kind: TypeEngine[Any]) -> ColumnElement[Any]:
    """Return a column of that table as it is stored."""
    return cast(new.c[name], kind) if isinstance(kind, JSON) else new.c[name]


def sent(values: Iterable[Any], kind: TypeEngine[Any]) -> list[Any]:
    """Return the array for one column."""
    if not isinstance(kind, JSON):
        return list(values)
    return [None if value is None and kind.none_as_null else json.dumps(value) for value in values]


def _sent(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    return Text() if isinstance(kind, JSON | String) else kind


def store_changes(session: Session) -> None:
    """Write all that was changed in this session, with one statement for all rows of which the same columns were.

    Elsewhere than where arrays are taken, this is the session's own way, with a statement for each row.
    """
    if takes_arrays(session):
        for model, key in KEYS.items():
            _store(session, model, key)
    session.flush()


def _store(session: Session, model: type[Base], key: str) -> None:
    columns = model.__table__.c.keys()
    alike: dict[tuple[str, ...], list[Base]] = {}
    for row in session.dirty:
        if isinstance(row, model):
            unmodified = inspect_row(row).unmodified
            alike.setdefault(tuple(name for name in columns if name not in unmodified), []).append(row)
    for names, rows in alike.items():
        if not names:
            continue
        kinds = _kinds(model, names)
        arrays: dict[str, list[Any]] = {f"new_{key}": [getattr(row, key) for row in rows]}
        for name in names:
            values = [getattr(row, name) for row in rows]
            arrays[f"new_{name}"] = sent(values, kinds[name])
            for row, value in zip(rows, values, strict=True):
                # As if it had been read anew: there is nothing left for the session to write.
                set_committed_value(row, name, value)
        session.execute(_statement(model, key, names), arrays)


def _kinds(model: type[Base], names: Sequence[str]) -> dict[str, TypeEngine[Any]]:
    return {name: model.__table__.c[name].type for name in names}


@functools.lru_cache(maxsize=256)
def _statement(model: type[Base], key: str, names: tuple[str, ...]) -> Update:
    kinds = _kinds(model, names)
    new = rows_of({key: String(), **kinds})
    values = {name: given(new, name, kind) for name, kind in kinds.items()}
    table = cast_type(Table, model.__table__)
    return update(table).where(table.c[key] == new.c[key]).values(values)
