"""The journal's native protocol, and which fields an entry has."""

from __future__ import annotations

import array
import io
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from airflow_edge_agent.adapters.journal import Journal, connected_to_journal
from airflow_edge_agent.runtime.logging import configure_logging, redact
from airflow_edge_agent.runtime.messages import EVENTS, catalogue

TOKEN = "eac_0123456789abcdef_" + "s" * 43
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "journal"))
        server.settimeout(10)
        yield server


def parse(data: bytes) -> dict[str, str]:
    fields = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + size], rest[8 + size + 1 :]
        fields[name.decode()] = value.decode()
        data = rest
    return fields


def receive(server: socket.socket) -> dict[str, str]:
    data, ancillary, _, _ = server.recvmsg(1 << 20, socket.CMSG_SPACE(4))
    if not ancillary:
        return parse(data)
    fds = array.array("i", ancillary[0][2])
    with os.fdopen(fds[0], "rb") as file:
        file.seek(0)
        return parse(file.read())


def test_short_long_and_many_lines(journald: socket.socket, tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "journal"))
    for message in ("one line", "two\nlines\n", "x" * 700_000, ""):
        assert journal.send({"MESSAGE": message, "PRIORITY": "6"})
        assert receive(journald) == {"MESSAGE": message, "PRIORITY": "6"}
    journal.close()


def test_a_journal_that_is_away_is_no_fault(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "nobody"))
    assert journal.send({"MESSAGE": "x"}) is False
    journal.close()


def test_whether_we_are_connected_to_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "stream").open("w") as stream:
        stat = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{stat.st_dev}:{stat.st_ino}")
        assert connected_to_journal(stream.fileno())
        for other in (f"{stat.st_dev}:1", "", "x:y"):
            monkeypatch.setenv("JOURNAL_STREAM", other)
            assert not connected_to_journal(stream.fileno())


def test_fields_of_an_entry(journald: socket.socket, tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "journal"))
    configure_logging("info", "auto", io.StringIO(), journal.send)
    structlog.get_logger().warning(
        "started", job="j-1", task="d.t", dag_id="d", task_id="t", run_id="r", try_number=2, map_index=-1, ti_id="i",
        edge_event="job_started", carrier="http",
    )  # fmt: skip
    fields = receive(journald)
    assert fields["PRIORITY"] == "4"
    assert fields["SYSLOG_IDENTIFIER"] == "edge-agent"
    assert fields["MESSAGE_ID"] == EVENTS["job_started"].message_id
    assert fields["MESSAGE"] == "started job=j-1 task=d.t carrier=http"
    assert {name: fields[name] for name in fields if name.startswith("AIRFLOW_")} == {
        "AIRFLOW_DAG_ID": "d",
        "AIRFLOW_TASK_ID": "t",
        "AIRFLOW_RUN_ID": "r",
        "AIRFLOW_TRY_NUMBER": "2",
        "AIRFLOW_MAP_INDEX": "-1",
        "AIRFLOW_TI_ID": "i",
    }
    assert (fields["EDGE_JOB_ID"], fields["EDGE_EVENT"], fields["EDGE_CARRIER"]) == ("j-1", "job_started", "http")
    journal.close()


def test_what_the_journal_does_not_take_goes_to_the_stream(tmp_path: Path) -> None:
    stream = io.StringIO()
    journal = Journal(str(tmp_path / "nobody"))
    configure_logging("info", "journal", stream, journal.send)
    structlog.get_logger().error("still said")
    journal.close()
    assert stream.getvalue() == "<3>still said\n"


@pytest.mark.parametrize("style", ["console", "json", "journal"])
def test_no_secret_whatever_the_style(style: str, journald: socket.socket, tmp_path: Path) -> None:
    stream = io.StringIO()
    journal = Journal(str(tmp_path / "journal"))
    configure_logging("info", style, stream, journal.send if style == "journal" else None)  # type: ignore[arg-type]
    jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ0aSJ9.c2lnbmF0dXJl"
    structlog.get_logger().info(f"says {TOKEN}", where=[TOKEN], how={"authorization": f"Bearer {jwt}"},
                                cause=ValueError(TOKEN), proxy="http://me:hunter2@proxy:3128")  # fmt: skip
    try:
        int(TOKEN)
    except ValueError:
        structlog.get_logger().exception("failed")
    text = stream.getvalue()
    if style == "journal":
        text = str(receive(journald)) + str(receive(journald))
    assert "says eac_0123456789abcdef_" in text
    for secret in ("s" * 43, jwt, "hunter2"):
        assert secret not in text
    journal.close()


def test_redaction_leaves_other_words_alone() -> None:
    plain = "https://airflow.example.com:8080/path eats eac_ and http://[::1]:80/"
    assert redact(plain) == plain


def test_every_event_has_an_id_of_its_own_and_is_used() -> None:
    ids = [message.message_id for message in EVENTS.values()]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[0-9a-f]{32}", message_id) for message_id in ids)
    sources = "".join(path.read_text() for path in (ROOT / "agent/src/airflow_edge_agent").rglob("*.py")
                      if path.name != "messages.py")  # fmt: skip
    unused = [name for name in EVENTS if f'"{name}"' not in sources]
    assert unused == []


def test_the_catalogue_that_is_shipped_is_the_one_in_the_code() -> None:
    (shipped,) = (ROOT / "systemd").rglob("*.catalog")
    assert shipped.read_text() == catalogue()
