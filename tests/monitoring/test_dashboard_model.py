"""The dashboard against Grafana's own description of what a dashboard is."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from monitoring.programs import DASHBOARD, PROJECT

MODULES = PROJECT / "server" / "ui" / "node_modules"
OPTIONS = {
    "strict": True,
    "noEmit": True,
    "target": "es2022",
    "module": "esnext",
    "moduleResolution": "bundler",
    "types": [],
    "skipLibCheck": True,
}


def check(folder: Path, dashboard: str) -> str:
    """Let TypeScript hold a dashboard to the model of ``@grafana/schema``; return what it finds."""
    (folder / "node_modules").symlink_to(MODULES)
    (folder / "dashboard.ts").write_text(
        f'import type {{ Dashboard }} from "@grafana/schema";\nexport const dashboard: Dashboard = {dashboard};\n'
    )
    (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": OPTIONS, "files": ["dashboard.ts"]}))
    command: list[str | Path] = [MODULES / ".bin" / "tsc", "-p", "tsconfig.json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert done.stderr == ""
    return done.stdout


def test_grafana_knows_all_that_the_dashboard_says(tmp_path: Path) -> None:
    assert check(tmp_path, DASHBOARD.read_text()) == ""


@pytest.mark.parametrize(("right", "wrong"), [('"gridPos"', '"gridPso"'), ('"multi": true', '"multi": "yes"')])
def test_what_it_does_not_know_is_found(tmp_path: Path, right: str, wrong: str) -> None:
    text = DASHBOARD.read_text()
    assert right in text
    assert "dashboard.ts(" in check(tmp_path, text.replace(right, wrong, 1))
