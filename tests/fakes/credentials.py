"""Credentials of agents, for tests that have no server which gave them one."""

from __future__ import annotations

import time
from pathlib import Path

from airflow_edge_agent.adapters.credential import Credential, Prover

SECRET = "U1NTU1NTU1NTU1NTU1NTU1NTU1NTU1NTU1NTU1NTU1M"
CREDENTIAL = f"eac_0123456789abcdef_{SECRET}"
"""What a credential file holds; the private key is 32 times the letter S."""


def make_prover(path: Path = Path("/nonexistent/credential"), **clocks: object) -> Prover:
    """Make proofs with :data:`CREDENTIAL`."""
    return Prover(Credential("0123456789abcdef", b"S" * 32), path, **clocks)  # type: ignore[arg-type]  # two clocks


def write_credential_file(path: Path, text: str = CREDENTIAL, mode: int = 0o600) -> Path:
    """Write a credential file and return its path."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(text + "\n")
    path.chmod(mode)
    return path


def refusal(server_time: float | None = None) -> dict[str, str]:
    """Headers of a 401 of the agent API."""
    moment = time.time() if server_time is None else server_time
    return {"WWW-Authenticate": f'Bearer realm="edge-agents", time="{moment:.0f}"'}
