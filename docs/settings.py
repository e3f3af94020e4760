"""Writes configuration.md from the settings model. ``python docs/settings.py`` rewrites the file."""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from airflow_edge_agent.configuration import section_at
from airflow_edge_agent.operations import APPLIED
from airflow_edge_agent.settings import Settings

PAGE = Path(__file__).parent / "configuration.md"

INTRODUCTION = """\
# Configuration of the agent

This page is written from the settings model (`python docs/settings.py`); a test compares the two.

Settings come from, each winning over the one before:

1. `/etc/airflow-edge-agent/agent.toml` (another file: `--config` or `EDGE_AGENT_CONFIG`),
2. `conf.d/*.toml` beside it, in the order of their names, key by key: a table is merged, a list is replaced,
3. `EDGE_AGENT_*` variables: `EDGE_AGENT_CONCURRENCY=8`, `EDGE_AGENT_RUNNER__PYTHON=...`; lists and tables as JSON,
4. flags of `edge-agent run`.

A key that is unknown is an error, which names the file or the variable and the setting that may have been meant.

```
edgectl config check             # exit code 78 if it is not usable
edgectl config show --origin     # every value and where it comes from, secrets masked
systemctl reload edge-agent      # or: edgectl reload
```

A reload checks first and keeps everything as it is if there is a fault. Settings marked with **R** take effect at once;
others are named in the log, and take effect with the next restart (which leaves running tasks alone). A new credential
is taken up, too.

"""


def described(model: type[BaseModel]) -> dict[str, str]:
    """Return what the source says below each field."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__[: model.__mro__.index(BaseModel)]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for field, after in zip(definition.body, [*definition.body[1:], ast.Pass()], strict=True):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                text = ""
                if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                    text = " ".join(str(after.value.value).replace("``", "`").split())
                found[field.target.id] = text
    return found


def default(value: Any) -> str:
    """Write a default value as TOML has it; what depends on the machine is told in words."""
    if value is PydanticUndefined:
        return "see there"
    if value is None or (isinstance(value, BaseModel) and value == type(value)()):
        return "none"
    return f"`{json.dumps(value if isinstance(value, bool | int | float | str | list | dict) else str(value))}`"


def table(model: type[BaseModel], *, marks: bool = False) -> list[str]:
    """Write a table of the plain settings of a section."""
    words = described(model)
    rows = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for name, field in model.model_fields.items():
        if marks and is_section(name):
            continue
        mark = " **R**" if marks and name in APPLIED else ""
        shown = "required" if field.is_required() else default(field.default)
        rows.append(f"| `{name}`{mark} | {shown} | {words.get(name, '')} |")
    return rows


def is_section(name: str) -> bool:
    """Tell whether a top-level setting is a table of settings."""
    return section_at((name,)) is not Settings


def page() -> str:
    """Write the whole page."""
    lines = [INTRODUCTION + "## At the top", "", *table(Settings, marks=True), ""]
    for name in filter(is_section, Settings.model_fields):
        model = section_at((name,))
        many = (
            "NAME" if str(Settings.model_fields[name].annotation).startswith("dict") or name == "custom_metrics" else ""
        )
        title = f"[{name}.{many}]" if many else f"[{name}]"
        mark = " **R**" if name in APPLIED else ""
        lines += [f"## `{title}`{mark}", "", re.sub(r"\s+", " ", (inspect.getdoc(model) or "").replace("``", "`")), ""]
        lines += [*table(model), ""]
        if name == "health":
            inner = section_at(("health", "disk_percent"))
            lines += [
                "Each threshold is a table, e.g. `disk_percent = { enter = 95, leave = 90 }`:",
                "",
                *table(inner),
                "",
            ]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
