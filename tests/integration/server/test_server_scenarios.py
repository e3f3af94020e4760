"""Every function of the scenario modules is one test, on each database."""

from __future__ import annotations

import ast
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from integration.server.conftest import Lab

pytestmark = pytest.mark.integration

# Read, not imported: importing them would start an Airflow in this process.
SCENARIOS = [
    f"{path.stem}:{node.name}"
    for path in sorted(Path(__file__).parent.glob("scenario_*.py"))
    for node in ast.parse(path.read_text()).body
    if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
]


# Airflow has connection tests on executors since 3.3.
OLDER = version("apache-airflow-core").split(".")[:2] < ["3", "3"]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(lab: Lab, scenario: str) -> None:
    if OLDER and "connection_test" in scenario:
        pytest.skip("this Airflow has no connection tests on executors")
    lab.run(f"integration.server.{scenario}")
