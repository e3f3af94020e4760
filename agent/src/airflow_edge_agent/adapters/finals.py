"""Final states of tasks on disk, as the daemon writes them, or the runner while there is no daemon."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airflow_edge_agent.adapters.files import sync_folder, write_atomically
from airflow_edge_agent.ports import FINAL_TARGET, MAX_FINAL_BYTES, FinalState
from airflow_edge_agent.protocol.relay import REQUEST_HEADERS

FINAL_FILE = "final.json"

MOST_FILE_BYTES = MAX_FINAL_BYTES // 3 * 4 + 64 * 1024
"""Most bytes of such a file: a body in base64, and what is around it."""

_Text = Annotated[str, Field(max_length=8_192, pattern=r"^[ -~]*$")]


class _FinalRecord(BaseModel):
    """What the file holds; ``body`` in base64."""

    model_config = ConfigDict(defer_build=True)

    method: Literal["PATCH"]
    target: _Text
    headers: Annotated[list[tuple[_Text, _Text]], Field(max_length=50)]
    body: str
    at: Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]


def write_final(path: Path, final: FinalState) -> None:
    """Write the file so that it is there, whole, after a crash of the host.

    :raises OSError: e.g. the disk is full; there is no file then, or the one from before.
    """
    content = {
        "method": "PATCH",
        "target": final.target.decode("latin-1"),
        "headers": [(name.decode("latin-1"), value.decode("latin-1")) for name, value in final.headers],
        "body": base64.b64encode(final.body).decode("ascii"),
        "at": final.at,
    }
    write_atomically(path, json.dumps(content))
    # Of a file whose name is lost, nothing is left; nor of one in a folder whose name is.
    for folder in (path.parent, path.parent.parent):
        sync_folder(folder)


def read_final(content: bytes) -> FinalState | None:
    """Read what is in the file; ``None`` if it is no final state. It may lie within reach of tasks."""
    try:
        record = _FinalRecord.model_validate_json(content)
        body = base64.b64decode(record.body, validate=True)
    except (ValidationError, ValueError):
        return None
    target = record.target.encode("ascii")
    if not FINAL_TARGET.fullmatch(target) or len(body) > MAX_FINAL_BYTES:
        return None
    headers = [(name.encode("ascii").lower(), value.encode("ascii")) for name, value in record.headers]
    # Its length is what it is now.
    kept = [(name, value) for name, value in headers if name in REQUEST_HEADERS and name != b"content-length"]
    return FinalState(target, [*kept, (b"content-length", b"%d" % len(body))], body, record.at)
