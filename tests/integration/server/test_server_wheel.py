"""The wheel that operators install carries what the pages in Airflow's UI are made of."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]
OURS = ROOT / ".tools" / "bin" / "uv"
UV = os.environ.get("UV") or shutil.which("uv") or (str(OURS) if OURS.exists() else None)


@pytest.mark.skipif(UV is None, reason="no uv, neither on PATH nor in .tools")
def test_the_wheel_has_the_bundle_as_it_is_here(tmp_path: Path) -> None:
    assert UV is not None
    command: list[str | Path] = [
        UV,
        "build",
        "--quiet",
        "--wheel",
        "--out-dir",
        tmp_path,
        "--package",
        "airflow-edge-server",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("airflow_edge_server-*.whl")
    package = ROOT / "server" / "src" / "airflow_edge_server"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for file in sorted((package / "ui" / "static").iterdir()):
            assert archive.read(f"airflow_edge_server/ui/static/{file.name}") == file.read_bytes(), file.name
        migrations = [path.name for path in (package / "migrations" / "versions").glob("*.py")]
        wanted = {"alembic.ini", "ui/static/edge-agents.js", *(f"migrations/versions/{name}" for name in migrations)}
        assert {f"airflow_edge_server/{name}" for name in wanted} <= names
