"""``airflow edge-agents api-server`` where it cannot serve: it says why, at once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

KEY = {"AIRFLOW__API_AUTH__JWT_SECRET": "x" * 32}


def refused(home: Path, *options: str, **env: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTEST"))}
    done = subprocess.run(
        [Path(sys.executable).with_name("airflow"), "edge-agents", "api-server", *options],
        env=clean | {"AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"} | KEY | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    return done.stderr.splitlines()[-1]


def test_without_a_key_that_others_know(tmp_path: Path) -> None:
    said = refused(tmp_path, AIRFLOW__API_AUTH__JWT_SECRET="")
    assert said == "error: no key to sign tokens with: The value api_auth/jwt_secret must be set!"


def test_with_a_setting_that_is_not_valid(tmp_path: Path) -> None:
    assert "[edge_agent] lease_seconds must be a number" in refused(tmp_path, AIRFLOW__EDGE_AGENT__LEASE_SECONDS="soon")


def test_with_half_of_tls(tmp_path: Path) -> None:
    assert refused(tmp_path, "--ssl-cert", "/no/such") == "error: --ssl-cert and --ssl-key go together"


def test_on_a_socket_that_is_somebody_elses(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        said = refused(tmp_path, "--uds", str(path))
    assert said == f"error: cannot listen on {path}: another process listens there"
    path.unlink()
    path.write_text("precious")
    assert "is no socket" in refused(tmp_path, "--uds", str(path))
    assert path.read_text() == "precious"
