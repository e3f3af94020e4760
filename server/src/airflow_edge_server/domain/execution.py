"""What a job may ask of Airflow's Execution API through its agent, and as what.

The Execution API itself authorises each call by a token. Here it is decided which token the server makes for a call
that an agent relays, and what is not passed on in the first place: deny by default.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote_to_bytes

TokenScope = Literal["workload", "execution"]
"""``workload`` starts a task instance or reports a connection test, ``execution`` does all the rest."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})

MAX_PATH_BYTES = 8_192

_OF_TASKS = frozenset(
    {
        "asset-events",
        "assets",
        "connections",
        "dag-runs",
        "dags",
        "hitlDetails",
        "store",
        "task-instances",
        "task-reschedules",
        "variables",
        "xcoms",
    }
)
_OF_CONNECTION_TESTS = frozenset({"connection-tests"})

_NAMES_ONE = (("task-instances",), ("task-reschedules",), ("hitlDetails",), ("store", "ti"), ("connection-tests",))
"""Beginnings of paths after which the id of a task instance or connection test may follow."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Denied(Exception):
    """A call that is not passed on. Holds the status and the reason to answer with."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class Call:
    """A call that may be passed on."""

    path: str
    """Decoded, beginning with a slash: what the Execution API finds its route by."""
    raw_path: bytes
    scope: TokenScope


def judge(method: str, raw_path: bytes, *, kind: str, subject: str) -> Call:
    """Decide about a call.

    :param raw_path: below the Execution API, percent-encoded, without query and leading slash.
    :param kind: of the job.
    :param subject: id of the job's task instance, callback or connection test.
    :raises Denied: it is not for this job.
    """
    if method not in METHODS:
        raise Denied(405, f"the Execution API has no method {method[:20]}")
    if len(raw_path) > MAX_PATH_BYTES:
        raise Denied(414, f"the path is longer than {MAX_PATH_BYTES} bytes")
    try:
        path = unquote_to_bytes(raw_path).decode("utf-8")
    except UnicodeDecodeError:
        raise Denied(400, "the path is not UTF-8") from None
    segments = path.split("/")
    if _CONTROL.search(path) or "\\" in path or any(segment in {".", ".."} for segment in segments):
        raise Denied(400, "the path holds what no path of the Execution API does")
    allowed = _OF_CONNECTION_TESTS if kind == "connection_test" else _OF_TASKS
    if segments[0] not in allowed:
        raise Denied(403, f"a job of the kind {kind} has nothing to ask there")
    _own_only(segments, subject)
    starts = kind == "task" and len(segments) == 3 and (segments[0], segments[2]) == ("task-instances", "run")  # noqa: PLR2004  all of the path
    scope: TokenScope = "workload" if starts or kind == "connection_test" else "execution"
    return Call("/" + path, b"/" + raw_path, scope)


def _own_only(segments: list[str], subject: str) -> None:
    for beginning in _NAMES_ONE:
        if tuple(segments[: len(beginning)]) == beginning and len(segments) > len(beginning):
            try:
                named = uuid.UUID(segments[len(beginning)])
            except ValueError:
                return  # another route, which names no task instance
            if named != uuid.UUID(subject):
                raise Denied(403, "that is not this job's own task instance")
