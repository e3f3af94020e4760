"""Modules that are put off: not loaded by being imported, and whole when something of them is used."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

_PROGRAM = """
import json, sys, types
from airflow_edge_agent.lazily import SELDOM_USED, postpone
postpone(*SELDOM_USED)
{more}
print(json.dumps([name for name in (*SELDOM_USED, "http.client") if type(sys.modules.get(name)) is types.ModuleType]))
"""


def loaded(more: str) -> list[str]:
    command = [sys.executable, "-c", _PROGRAM.format(more=more)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout))


def test_an_import_loads_nothing() -> None:
    assert loaded("import urllib.request, bz2\nimport urllib.request") == []


@pytest.mark.parametrize(
    "use",
    [
        "import urllib.request; assert urllib.request.proxy_bypass_environment('x') is not None",
        "from urllib.request import getproxies; assert getproxies() is not None",
        "import httpx; assert httpx.URL('http://host').host == 'host'",
    ],
)
def test_a_use_loads_all_of_it(use: str) -> None:
    assert "urllib.request" in loaded(use)


def test_a_function_that_is_only_taken_out_loads_nothing_until_it_is_called() -> None:
    taken = "from importlib.metadata import entry_points"
    assert loaded(f"{taken}; import pydantic") == []
    for use in (
        f"{taken}; assert entry_points(group='console_scripts')",
        "from importlib.metadata import version; assert version('pydantic')",
        f"{taken}; import importlib.metadata as m; m.distribution('pydantic'); assert not entry_points(group='no')",
    ):
        assert "importlib.metadata" in loaded(use), use


def test_what_does_not_exist_is_said_as_ever() -> None:
    assert loaded("import bz2\ntry: bz2.nothing\nexcept AttributeError: pass") == ["bz2"]


def test_the_daemon_and_its_websocket_do_without() -> None:
    program = (
        "from airflow_edge_agent.lazily import stay_small; stay_small()\n"
        "import sys, airflow_edge_agent.daemon, airflow_edge_agent.adapters.websocket, websockets.asyncio.client\n"
        "print([n for n in ('http.client', 'httpx', 'email', 'pydantic_settings') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


_CHILD = """
import os, sys
from airflow_edge_agent.configuration import ConfigError, from_environment
from airflow_edge_agent.lazily import in_a_child
def work():
    {work}
try:
    print(in_a_child(work))
except ConfigError as error:
    print("ConfigError:", error)
print("pydantic_settings" in sys.modules)
"""


@pytest.mark.parametrize(
    ("work", "told"),
    [
        ("return from_environment()", "{'runner': {'idle_seconds': '7'}}"),
        ("raise ConfigError('mend it')", "ConfigError: mend it"),
        ("return 'here' if os.getpid() == parent else os._exit(1)", "here"),
    ],
)
def test_what_a_child_loads_goes_with_it(work: str, told: str) -> None:
    program = "import os; parent = os.getpid()\n" + _CHILD.format(work=work)
    environment = {"PATH": os.environ["PATH"], "EDGE_AGENT_RUNNER__IDLE_SECONDS": "7"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == f"{told}\nFalse\n"
