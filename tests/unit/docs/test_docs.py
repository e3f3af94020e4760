"""The documentation says what the code does."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from airflow_edge_agent.ctl.main import build_parser

ROOT = Path(__file__).parents[3]


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_state_diagrams_are_those_of_the_code() -> None:
    assert (ROOT / "docs" / "states.md").read_text() == script("draw").page(), "run: python docs/draw.py"


def test_the_settings_are_those_of_the_code() -> None:
    settings = script("settings")
    assert settings.PAGE.read_text() == settings.page(), "run: python docs/settings.py"
    rows = [line for line in settings.page().splitlines() if line.startswith("| `")]
    assert [row for row in rows if row.endswith("|  |")] == [], "a setting without a word about it"


def test_the_metrics_are_those_of_the_code() -> None:
    metrics = script("metrics")
    assert metrics.PAGE.read_text() == metrics.page(), "run: python docs/metrics.py"
    monitoring = script("monitoring")
    assert monitoring.DASHBOARD.read_text() == monitoring.dashboard(), "run: python docs/monitoring.py"
    assert monitoring.ALERTS.read_text() == monitoring.alerts(), "run: python docs/monitoring.py"


def test_the_admin_api_is_described_as_it_is() -> None:
    admin_api = script("admin_api")
    assert admin_api.PAGE.read_text() == admin_api.page(), "run: python docs/admin_api.py"
    document = json.loads(admin_api.page())
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert [one["operationId"] for one in operations if not one.get("description")] == []


def test_each_command_of_edgectl_is_described() -> None:
    text = (ROOT / "docs" / "edgectl.md").read_text()
    (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    for name, parser in commands.choices.items():
        assert f"`{name}" in text, name
        for action in parser._actions:
            for option in action.option_strings:
                assert option in ("-h", "--help") or option in text, f"{name} {option}"


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def names_in(path: Path) -> set[str]:
    return {
        n.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_each_promise_about_security_names_a_test_that_exists() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith(("| cannot |", "| is |"))]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", row)
        assert named, f"no test: {row}"
        for path, name in named:
            assert (ROOT / "tests" / path).is_file(), path
            assert not name or name in names_in(ROOT / "tests" / path), f"{path}::{name}"
