"""The environment in which the runner and its tasks live: an allow-list and the configuration, not the daemon's own."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from airflow_edge_agent.adapters.jobstore import RUNNER_JOBS
from airflow_edge_agent.settings import Settings

ALLOWED = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")

_PROBE = (
    "import importlib.metadata as m\n"
    "for name in ('task-sdk', 'core'):\n"
    "    try:\n"
    "        print(m.version('apache-airflow-' + name))\n"
    "    except m.PackageNotFoundError:\n"
    "        print('none')\n"
)
_PROBE_SECONDS = 30
_VERSION = re.compile(r"\d[\w.+!-]{0,99}")


def task_environment(settings: Settings) -> dict[str, str]:
    """Make the runner's environment."""
    names = (*ALLOWED, *PROXIES, *settings.runner.pass_env)
    environment = {name: os.environ[name] for name in names if name in os.environ}
    environment.setdefault("PATH", "/usr/local/bin:/usr/bin:/bin")
    # Tools of the runtime's environment before the system's, as in an activated virtual environment.
    environment["PATH"] = f"{settings.runner.python.parent}:{environment['PATH']}"
    environment |= {
        "AIRFLOW_HOME": str(settings.runner_dir / "airflow-home"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(settings.runner_dir / RUNNER_JOBS),
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH": str(settings.runner_dir / "bundles"),
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": bundle_config(settings),
        # A restart of the api-server takes seconds, a bad link minutes: let tasks wait for it rather than die.
        "AIRFLOW__WORKERS__EXECUTION_API_RETRIES": "60",
        "AIRFLOW__WORKERS__EXECUTION_API_RETRY_WAIT_MAX": "5",
    }
    return environment | settings.runner.env


def bundle_config(settings: Settings) -> str:
    """Say in Airflow's terms where this machine has its Dag bundles."""
    local = "airflow.dag_processing.bundles.local.LocalDagBundle"
    bundles = []
    for name, bundle in settings.bundles.items():
        kwargs = {"path": str(bundle.path)} if bundle.path is not None else bundle.kwargs
        bundles.append({"name": name, "classpath": bundle.classpath or local, "kwargs": kwargs})
    return json.dumps(bundles)


def check_runtime(
    python: Path, identity: Mapping[str, Any] = MappingProxyType({})
) -> tuple[dict[str, str], str | None]:
    """Look at the task runtime without loading it.

    :param identity: as whom, in the words of :class:`subprocess.Popen`; by default as ourselves.

    :return: the versions of ``task_sdk`` and, if it is there, ``airflow``; and the problem, if any, in one line.
    """
    try:
        answer = subprocess.run(  # noqa: S603 -- the Python is the operator's choice
            [str(python), "-I", "-c", _PROBE],
            **identity,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        return {}, f"{python}: no such program; set runner.python to the Python of the task runtime"
    except subprocess.TimeoutExpired:
        return {}, f"{python}: does not answer within {_PROBE_SECONDS} s"
    except OSError as error:
        return {}, f"{python}: cannot be run ({error.strerror}); check runner.python"
    if answer.returncode != 0:
        words = answer.stderr.strip().splitlines()
        return {}, f"{python}: is no working Python ({words[-1][:200] if words else answer.returncode})"
    sdk, _, airflow = answer.stdout.strip().partition("\n")
    if sdk == "none":
        return {}, (
            f"{python}: has no Task SDK; install apache-airflow-task-sdk there, or set runner.python to the Python "
            "of an environment that has it"
        )
    if not _VERSION.fullmatch(sdk):
        return {}, f"{python}: is no Python; set runner.python to the Python of the task runtime"
    return {"task_sdk": sdk} | ({"airflow": airflow} if _VERSION.fullmatch(airflow) else {}), None
