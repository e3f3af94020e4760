"""Calls of tasks on disk, which Airflow hears later: as the daemon writes them, or the runner in its absence."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airflow_edge_agent.adapters.files import sync_file, sync_folder, write_atomically
from airflow_edge_agent.ports import FINAL_TARGET, MAX_FINAL_BYTES, RENDERED_TARGET, FinalState, KeptCall
from airflow_edge_agent.protocol.relay import REQUEST_HEADERS

FINAL_FILE = "final.json"
RENDERED_FILE = "rendered.json"

MOST_FILE_BYTES = MAX_FINAL_BYTES // 3 * 4 + 64 * 1024
"""Most bytes of such a file: a body in base64, and what is around it."""

_Text = Annotated[str, Field(max_length=8_192, pattern=r"^[ -~]*$")]


class _Record(BaseModel):
    """What the file holds; ``body`` in base64."""

    model_config = ConfigDict(defer_build=True)

    method: Literal["PATCH", "PUT"]
    target: _Text
    headers: Annotated[list[tuple[_Text, _Text]], Field(max_length=50)]
    body: str
    at: Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]


def write_final(path: Path, final: FinalState) -> None:
    """Write the file so that it is there, whole, after a crash of the host, with the rendered fields beside it.

    :raises OSError: e.g. the disk is full; there is no file then, or the one from before.
    """
    rendered = path.with_name(RENDERED_FILE)
    if rendered.exists():
        sync_file(rendered)
    write_atomically(path, _text("PATCH", final))
    # Of a file whose name is lost, nothing is left; nor of one in a folder whose name is.
    for folder in (path.parent, path.parent.parent):
        sync_folder(folder)


def write_rendered(path: Path, call: KeptCall) -> None:
    """Write the file so that it outlives the daemon: a task waits for it.

    :raises OSError: e.g. the disk is full; there is no file then, or the one from before.
    """
    write_atomically(path, _text("PUT", call), sync=False)


def _text(method: str, call: KeptCall) -> str:
    content = {
        "method": method,
        "target": call.target.decode("latin-1"),
        "headers": [(name.decode("latin-1"), value.decode("latin-1")) for name, value in call.headers],
        "body": base64.b64encode(call.body).decode("ascii"),
        "at": call.at,
    }
    return json.dumps(content)


def read_final(content: bytes) -> FinalState | None:
    """Read what is in the file; ``None`` if it is no final state. It may lie within reach of tasks."""
    found = _read(content, "PATCH", FINAL_TARGET)
    return None if found is None else FinalState(*found)


def read_rendered(content: bytes) -> KeptCall | None:
    """Read what is in the file; ``None`` if it is not what a job's templates became."""
    found = _read(content, "PUT", RENDERED_TARGET)
    return None if found is None else KeptCall(*found)


def _read(
    content: bytes, method: str, targets: re.Pattern[bytes]
) -> tuple[bytes, list[tuple[bytes, bytes]], bytes, float] | None:
    try:
        record = _Record.model_validate_json(content)
        body = base64.b64decode(record.body, validate=True)
    except (ValidationError, ValueError):
        return None
    target = record.target.encode("ascii")
    if record.method != method or not targets.fullmatch(target) or len(body) > MAX_FINAL_BYTES:
        return None
    headers = [(name.encode("ascii").lower(), value.encode("ascii")) for name, value in record.headers]
    # Its length is what it is now.
    kept = [(name, value) for name, value in headers if name in REQUEST_HEADERS and name != b"content-length"]
    return target, [*kept, (b"content-length", b"%d" % len(body))], body, record.at
