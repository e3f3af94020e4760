"""Modules that are put off: not loaded by being imported, and whole when something of them is used."""

from __future__ import annotations

import json
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
    assert loaded("import urllib.request, zipfile\nimport urllib.request") == []


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


def test_what_does_not_exist_is_said_as_ever() -> None:
    assert loaded("import zipfile\ntry: zipfile.nothing\nexcept AttributeError: pass") == ["zipfile"]


def test_the_daemon_and_its_websocket_do_without() -> None:
    program = (
        "from airflow_edge_agent.lazily import stay_small; stay_small()\n"
        "import sys, airflow_edge_agent.daemon, airflow_edge_agent.adapters.websocket, websockets.asyncio.client\n"
        "print('http.client' in sys.modules, 'httpx' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
