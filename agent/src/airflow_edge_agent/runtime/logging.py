"""The agent's own log: structlog to the journal, to a terminal, as plain lines or as JSON."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Literal, TextIO

import structlog

from airflow_edge_agent.protocol.text import visible_all
from airflow_edge_agent.runtime.messages import EVENTS

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
PRIORITIES = {"debug": "7", "info": "6", "warning": "4", "error": "3", "critical": "2"}

IDENTIFIER = "edge-agent"

Level = Literal["debug", "info", "warning", "error"]
Style = Literal["auto", "console", "json", "journal"]
SendEntry = Callable[[Mapping[str, str]], bool]
"""Gives an entry to the journal; tells whether it was taken."""

TASK_FIELDS = ("dag_id", "task_id", "run_id", "try_number", "map_index", "ti_id", "trace_id", "span_id")
_FIELD_NAMES = {name: f"AIRFLOW_{name.upper()}" for name in TASK_FIELDS} | {
    "job": "EDGE_JOB_ID",
    "edge_event": "EDGE_EVENT",
}

_SECRETS = (
    (re.compile(r"(ea[cjp])_([0-9a-f]{1,16})_[A-Za-z0-9_-]+"), r"\1_\2_********"),
    (re.compile(r"\beyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]+"), "********"),
    (re.compile(r"(?i)\b(bearer +)[^\s\"']+"), r"\1********"),
    (re.compile(r"(://[^/\s:@]*:)[^/\s@]+@"), r"\1********@"),
)


def redact(text: str) -> str:
    """Return the text without what looks like a token or a password."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def configure_logging(level: Level, style: Style, stream: TextIO, journal: SendEntry | None = None) -> None:
    """Set up structlog for the whole process. May be called again, to change it.

    :param style: ``auto`` uses the journal if there is one, else it colours on a terminal unless ``NO_COLOR`` is set;
        ``json`` gives one object per line.
    :param journal: takes entries, if systemd has connected us to the journal.
    """
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _redact_all,
    ]
    factory: Any = structlog.PrintLoggerFactory(stream)
    if style == "json":
        processors.append(structlog.processors.JSONRenderer())
    elif journal is not None and style in ("auto", "journal"):
        processors += [_make_visible, _as_entry]
        factory = _JournalLoggerFactory(journal, stream)
    else:
        colours = style == "auto" and stream.isatty() and not os.environ.get("NO_COLOR")
        processors += [_make_visible, _for_people]
        processors.append(
            structlog.dev.ConsoleRenderer(
                colors=colours, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
            )
        )
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=factory,
        cache_logger_on_first_use=False,
    )
    # httpx and asyncio speak through the standard library; what they have to say is in our own messages already.
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr, format="%(name)s: %(message)s")


def _redact_all(_: Any, __: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in entry.items():
        entry[key] = _redacted(value)
    return entry


def _make_visible(_: Any, __: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Spell out what would drive a terminal or look like another line. JSON does so by itself."""
    for key, value in entry.items():
        entry[key] = visible_all(value, keep="\n\t" if key == "exception" else "")
    return entry


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, list | tuple):
        return [_redacted(part) for part in value]
    if isinstance(value, dict):
        return {key: _redacted(part) for key, part in value.items()}
    return redact(str(value)) if isinstance(value, BaseException) else value


def _for_people(_: Any, __: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Leave out what the label of the task says already."""
    for name in (*TASK_FIELDS, "edge_event"):
        entry.pop(name, None)
    return entry


def _as_entry(_: Any, __: str, entry: MutableMapping[str, Any]) -> tuple[tuple[dict[str, str]], dict[str, Any]]:
    """Make the fields of a journal entry. What is not in the message's own words follows them."""
    message = str(entry.pop("event", ""))
    level = str(entry.pop("level", "info"))
    entry.pop("timestamp", None)
    exception = entry.pop("exception", None)
    fields = {"PRIORITY": PRIORITIES.get(level, "6"), "SYSLOG_IDENTIFIER": IDENTIFIER}
    known = EVENTS.get(str(entry.get("edge_event")))
    if known is not None:
        fields["MESSAGE_ID"] = known.message_id
    for name, value in entry.items():
        fields[_FIELD_NAMES.get(name) or "EDGE_" + re.sub(r"[^A-Z0-9]", "_", name.upper())[:50]] = str(value)
    told = [f"{name}={value}" for name, value in entry.items() if name not in (*TASK_FIELDS, "edge_event")]
    fields["MESSAGE"] = " ".join([message, *told]) + (f"\n{exception}" if exception else "")
    return (fields,), {}


class _JournalLogger:
    """What structlog hands finished entries to."""

    def __init__(self, send: SendEntry, stream: TextIO) -> None:
        self._send = send
        self._stream = stream

    def msg(self, fields: dict[str, str]) -> None:
        if not self._send(fields):
            # journald is being restarted, or its queue is full: this stream goes there as well, and waits.
            text = fields["MESSAGE"].replace("\n", "\n  ")
            print(f"<{fields['PRIORITY']}>{text}", file=self._stream, flush=True)

    debug = info = warning = error = critical = exception = log = msg


class _JournalLoggerFactory:
    def __init__(self, send: SendEntry, stream: TextIO) -> None:
        self._logger = _JournalLogger(send, stream)

    def __call__(self, *_: Any) -> _JournalLogger:
        return self._logger
