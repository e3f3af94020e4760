"""The golden frames and which side says which."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from airflow_edge_agent.protocol.frames import AgentFrame, ServerFrame

GOLDEN = Path(__file__).parent.parent / "contract" / "golden"
AGENT_TYPES: dict[str, type[BaseModel]] = {t.model_fields["type"].default: t for t in get_args(AgentFrame)}
SERVER_TYPES: dict[str, type[BaseModel]] = {t.model_fields["type"].default: t for t in get_args(ServerFrame)}
NAMES = sorted(path.stem for path in GOLDEN.glob("*.json"))


def load(name: str) -> dict[str, Any]:
    """Read a golden frame."""
    content: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    return content
