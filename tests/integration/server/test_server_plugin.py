"""What installing the package costs processes that have nothing to do with agents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.integration


def run(code: str, home: Path, **env: str) -> Any:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTEST"))}
    done = subprocess.run(
        [sys.executable, "-c", f"import json, sys\n{code}"],
        env=clean | {"AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"} | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("process", ["airflow.sdk.execution_time.task_runner", "airflow.plugins_manager"])
def test_plugin_imports_nothing_else(tmp_path: Path, process: str) -> None:
    added = run(
        f"import {process}\n"
        "before = set(sys.modules)\n"
        "import airflow_edge_server.plugin\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))",
        tmp_path,
    )
    assert set(added) <= {"airflow_edge_server", "airflow_edge_server.plugin"}


def test_plugin_module_needs_neither_fastapi_nor_sqlalchemy(tmp_path: Path) -> None:
    added = run(
        "import types\n"
        "fake = types.ModuleType('airflow.sdk.plugins_manager')\n"
        "class AirflowPlugin:\n"
        "    pass\n"
        "fake.AirflowPlugin = AirflowPlugin\n"
        "for name in ('airflow', 'airflow.sdk'):\n"
        "    sys.modules[name] = types.ModuleType(name)\n"
        "sys.modules['airflow.sdk.plugins_manager'] = fake\n"
        "import airflow_edge_server.plugin, airflow_edge_server.provider_info\n"
        "airflow_edge_server.provider_info.get_provider_info()\n"
        "print(json.dumps(sorted(sys.modules)))",
        tmp_path,
    )
    heavy = ("fastapi", "starlette", "sqlalchemy", "pydantic", "airflow_edge_agent", "airflow_edge_server.")
    allowed = {"airflow_edge_server.plugin", "airflow_edge_server.provider_info"}
    assert [name for name in added if name.startswith(heavy) and name not in allowed] == []


@pytest.mark.parametrize(
    "loading",
    [
        "from airflow.plugins_manager import get_plugin_info; get_plugin_info()",
        "from airflow.plugins_manager import get_fastapi_plugins; get_fastapi_plugins()",
        "from airflow.sdk.plugins_manager import _get_plugins; _get_plugins()",
    ],
)
def test_app_is_not_built_outside_of_the_api_server(tmp_path: Path, loading: str) -> None:
    seen = run(
        f"import airflow\n{loading}\n"
        "print(json.dumps([m for m in sys.modules if m.startswith('airflow_edge_server')]))",
        tmp_path,
        AIRFLOW__EDGE_AGENT__API_ENABLED="True",
    )
    assert "airflow_edge_server.plugin" in seen
    assert "airflow_edge_server.mounting" not in seen


def test_app_is_not_built_when_it_is_not_enabled(tmp_path: Path) -> None:
    code = (
        "import airflow, types\n"
        "sys.modules['airflow.api_fastapi.main'] = types.ModuleType('main')\n"
        "from airflow_edge_server.plugin import EdgeAgentsPlugin\n"
        "apps = EdgeAgentsPlugin().fastapi_apps\n"
        "print(json.dumps([len(apps), 'airflow_edge_server.api.app' in sys.modules]))"
    )
    assert run(code, tmp_path) == [0, False]
    assert run(code, tmp_path, AIRFLOW__EDGE_AGENT__API_ENABLED="perhaps") == [0, False]


def test_provider_info_fits_airflows_schema(tmp_path: Path) -> None:
    found = run(
        "import jsonschema, pathlib, airflow\n"
        "from airflow_edge_server.provider_info import get_provider_info\n"
        "info = get_provider_info()\n"
        "folder = pathlib.Path(airflow.__file__).parent\n"
        "jsonschema.validate(info, json.loads((folder / 'provider_info.schema.json').read_text()))\n"
        "from airflow._shared.module_loading import import_string\n"
        "for kind in ('executors', 'cli', 'db-managers'):\n"
        "    for path in info[kind]:\n"
        "        import_string(path)\n"
        "import_string(info['remote-logging'][0]['classpath'])\n"
        "print(json.dumps(info['package-name']))",
        tmp_path,
    )
    assert found == "airflow-edge-server"


def test_defaults_are_what_the_code_falls_back_to(tmp_path: Path) -> None:
    code = (
        "import dataclasses, airflow\n"
        "from airflow.configuration import conf\n"
        "from airflow_edge_server import config\n"
        "class Nothing:\n"
        "    def get(self, s, o, fallback=None): return fallback\n"
        "    def getboolean(self, s, o, fallback=None): return fallback\n"
        "print(json.dumps([dataclasses.asdict(config.load()), dataclasses.asdict(config.load(Nothing()))]))"
    )
    declared, fallback = run(code, tmp_path)
    assert declared == fallback


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("LEASE_SECONDS", "soon", "[edge_agent] lease_seconds must be a number, got 'soon'"),
        ("LEASE_SECONDS", "nan", "[edge_agent] lease_seconds must be between 1 and 3600, got 'nan'"),
        ("AGENT_TIMEOUT", "20", "[edge_agent] agent_timeout (20) must be longer than heartbeat_interval (25)"),
        ("DISCONNECT_GRACE", "60", "[edge_agent] disconnect_grace (60) must not be shorter than agent_timeout (75)"),
        ("EXECUTION_API_URL", "here", "[edge_agent] execution_api_url must begin with http:// or https://, got 'here'"),
    ],
)
def test_bad_configuration_is_named(tmp_path: Path, option: str, value: str, message: str) -> None:
    code = (
        "import airflow\n"
        "from airflow.exceptions import AirflowConfigException\n"
        "from airflow_edge_server import config\n"
        "try:\n"
        "    config.load()\n"
        "except AirflowConfigException as error:\n"
        "    print(json.dumps(str(error)))"
    )
    assert run(code, tmp_path, **{f"AIRFLOW__EDGE_AGENT__{option}": value}) == message
