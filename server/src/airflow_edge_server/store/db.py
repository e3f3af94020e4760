"""Our tables and Airflow's database commands: created, upgraded, checked and dropped by them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from airflow.utils.db_manager import BaseDBManager
from airflow.utils.session import create_session
from sqlalchemy.exc import SQLAlchemyError

from airflow_edge_server.store.models import metadata

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

_PACKAGE = Path(__file__).resolve().parents[1]

MIGRATE = "run `airflow db migrate`"


class EdgeAgentDBManager(BaseDBManager):  # type: ignore[misc]  # Airflow is not followed by mypy
    """Keeps the ``edge_agent*`` tables at the revision of the installed package."""

    metadata = metadata
    version_table_name = "alembic_version_edge_agent"
    migration_dir = (_PACKAGE / "migrations").as_posix()
    alembic_file = (_PACKAGE / "alembic.ini").as_posix()
    supports_table_dropping = True
    revision_heads_map = {"0.1.0": "d82b5c0f7e16"}  # noqa: RUF012  Airflow's base class declares it so


def schema_problem(session: Session | None = None) -> str | None:
    """Tell in one line what is wrong with our tables and how to mend it; ``None``: they are as they should be."""
    if session is None:
        with create_session(scoped=False) as own:
            return schema_problem(own)
    manager = EdgeAgentDBManager(session)
    try:
        found = manager.get_current_revision()
    except SQLAlchemyError as error:
        # The driver's own text may hold the connection string.
        return f"the metadata database cannot be read ({type(error).__name__}): check [database] sql_alchemy_conn"
    script = manager.get_script_object()
    wanted = script.get_current_head()
    if found == wanted:
        return None
    if found is None:
        return f"the tables of airflow-edge-server are missing in the metadata database: {MIGRATE}"
    known = {revision.revision for revision in script.walk_revisions()}
    if found in known:
        return f"the tables of airflow-edge-server are outdated (at {found}, need {wanted}): {MIGRATE}"
    return (
        f"the tables of airflow-edge-server are at {found}, which this version does not know (it needs {wanted}): "
        "install the version of airflow-edge-server that made them, or a newer one"
    )
