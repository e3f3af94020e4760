"""Logs on disk of which a part was dropped: the file keeps its length, the dropped part gives its blocks back.

So a task can go on appending, and neither it nor the runner has to know.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from airflow_edge_agent.adapters.files import write_atomically
from airflow_edge_agent.core.spool import Cut, locate, offset_of
from airflow_edge_agent.protocol.frames import Bytes

CUTS_FILE = "cuts.json"

_PUNCH_HOLE = 0x02 | 0x01
"""``FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE`` of fallocate(2)."""

_FAR_BYTES = 1024 * 1024 * 1024

_LINE_BYTES = 64 * 1024
"""How far to look for the end of the line that is cut."""


class _CutRecord(BaseModel):
    at: Bytes
    dropped: Bytes
    marker: str


_records: TypeAdapter[list[_CutRecord]] = TypeAdapter(list[_CutRecord])


def load_cuts(path: Path) -> tuple[Cut, ...]:
    """Read a job's cuts; none if there is no file."""
    try:
        records = _records.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return ()
    return tuple(Cut(record.at, record.dropped, record.marker.encode()) for record in records)


def read_stream(fd: int, offset: int, limit_bytes: int, cuts: Sequence[Cut]) -> bytes:
    """Read a piece of a log around its cuts.

    :raises OSError: it cannot be read.
    """
    data = b""
    while len(data) < limit_bytes:
        marker, place, until_cut = locate(offset + len(data), cuts)
        wanted = limit_bytes - len(data)
        if until_cut is not None:
            wanted = min(wanted, until_cut)
        piece = marker[: limit_bytes - len(data)] if marker else os.pread(fd, wanted, place)
        if not piece:
            break
        data += piece
    return data


def shed(log: int, cuts_file: Path, cuts: tuple[Cut, ...], offset: int, count: int) -> tuple[Cut, ...]:
    """Drop ``count`` bytes and the rest of the line they end in, and return all cuts.

    :param log: the open log, to be read and written.
    :param offset: where in the stream; nothing from there on has been sent.
    :raises OSError: the disk is full, or its file system cannot do this.
    """
    earlier, at, begin = _place(cuts, offset)
    size = os.fstat(log).st_size
    _punch(log, size + _FAR_BYTES, 1)  # nothing is there: it tells whether this file system can do it
    end = _end_of_line(log, min(size, begin + count))
    own_line = at == 0 or any(cut.end == at for cut in earlier) or os.pread(log, 1, at - 1) == b"\n"
    marker = _marker(end - at, own_line=own_line)
    changed = (*earlier, Cut(at, end - at, marker))
    records = [{"at": cut.at, "dropped": cut.dropped, "marker": cut.marker.decode()} for cut in changed]
    write_atomically(cuts_file, json.dumps(records))
    _punch(log, begin, end - begin)
    return changed


def _place(cuts: tuple[Cut, ...], offset: int) -> tuple[tuple[Cut, ...], int, int]:
    """Say which cuts stay, where in the file the new one begins, and where its first byte not yet dropped is."""
    if cuts and offset <= offset_of(cuts[-1], cuts):
        # Nothing has been sent since the last cut: it grows.
        return cuts[:-1], cuts[-1].at, cuts[-1].end
    _, place, _ = locate(offset, cuts)
    return cuts, place, place


def _end_of_line(fd: int, end: int) -> int:
    if end and os.pread(fd, 1, end - 1) == b"\n":
        return end
    rest = os.pread(fd, _LINE_BYTES, end)
    return end + rest.find(b"\n") + 1


def _marker(dropped: int, *, own_line: bool) -> bytes:
    line = {
        "timestamp": datetime.now(UTC).isoformat(),
        "level": "warning",
        "event": f"{dropped} bytes of log were dropped by the edge agent: spool limit (spool_max_mb) reached",
        "logger": "edge_agent",
    }
    return (b"" if own_line else b"\n") + json.dumps(line).encode() + b"\n"


def _punch(fd: int, at: int, count: int) -> None:
    if count <= 0:
        return
    library = ctypes.CDLL(None, use_errno=True)
    library.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if library.fallocate(fd, _PUNCH_HOLE, at, count) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
