"""Gives the whole test run an Airflow of its own, before anything imports Airflow."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

from harness.mysql import mysql_server
from harness.postgres import postgres_server

__all__ = ["mysql_server", "postgres_server"]


def _own_airflow() -> None:
    if "airflow" in sys.modules:
        raise RuntimeError("Airflow was imported before the tests could give it a home of its own")
    home = Path(tempfile.mkdtemp(prefix="edge-agent-tests-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    for name in [name for name in os.environ if name.startswith("AIRFLOW_")]:
        del os.environ[name]
    os.environ["AIRFLOW_HOME"] = str(home)
    os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
    os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = f"sqlite:///{home}/airflow.db"
    # The agent is configured by variables too.
    for name in [name for name in os.environ if name.startswith("EDGE_AGENT_")]:
        del os.environ[name]


_own_airflow()
