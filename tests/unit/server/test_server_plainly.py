"""What agents write can neither forge a line of the server's log nor drive a terminal."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest

import airflow_edge_server
from airflow_edge_agent.protocol.text import visible
from airflow_edge_server import plainly
from airflow_edge_server.log_io import describe
from airflow_edge_server.store.logs import LoggedJob

CANARIES = ["a\nforged", "a\x1b[2Jforged", "a\x9b31mforged", "a\u202egnp.exe", "a\u2028forged", "a\x00forged"]


@pytest.mark.parametrize("canary", CANARIES)
def test_the_servers_log(canary: str, caplog: pytest.LogCaptureFixture) -> None:
    log = plainly.logger("airflow_edge_server.test")
    with caplog.at_level(logging.INFO):
        log.info("Agent %s says %r at %d: %s", canary, canary, 7, ValueError(canary))
    (record,) = caplog.records
    assert record.getMessage().isprintable()
    assert "at 7" in record.getMessage()


def test_every_module_logs_this_way() -> None:
    folder = Path(airflow_edge_server.__file__).parent
    for path in folder.rglob("*.py"):
        text = path.read_text()
        if path.name != "plainly.py":
            assert "getLogger(__name__)" not in text, f"{path}: use plainly.logger"
            assert "AirflowConsole" not in text, f"{path}: use plainly.print_rows"
            for line in re.findall(r"^\s*log\.\w+\(f\".*", text, re.MULTILINE):
                pytest.fail(f"{path}: what is filled in is made visible, an f-string is not: {line}")


@pytest.mark.parametrize("canary", [*CANARIES, "a[red]forged[/red]", "a[link=http://x]forged"])
@pytest.mark.parametrize("output", ["table", "plain", "json", "yaml"])
def test_tables_of_commands(canary: str, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    plainly.print_rows([canary], output=output, mapper=lambda text: {"name": "press", "problem": text})
    shown = capsys.readouterr().out
    assert shown == visible(shown, keep="\n")
    if output == "json":
        assert json.loads(shown) == [{"name": "press", "problem": canary}], "for programs it is what it is"
    elif "[" in canary and "\x1b" not in canary:
        assert canary in shown, "no markup"


def test_where_a_log_comes_from() -> None:
    job = LoggedJob("1", "press", "finished", "lost", "a\nforged\x1b[2J", None, 0, None)
    assert describe(job).isprintable()
