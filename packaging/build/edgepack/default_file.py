"""Writes the agent.toml that is installed: every setting with what it does, commented out."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from edgepack.settings_model import Section, Setting

_WIDTH = 118

_HEAD = """\
# Configuration of the Airflow edge agent. agent.toml(5) tells more; what is commented out shows the defaults.
#
# Files conf.d/*.toml beside this one are read after it, in the order of their names, then EDGE_AGENT_* variables
# (/etc/default/edge-agent), then flags. After a change:
#   edgectl config check && systemctl reload edge-agent
"""


def render(sections: Sequence[Section], examples: dict[str, str]) -> str:
    """Write the file.

    :param examples: TOML for settings without a default that can be written down, by dotted name.
    """
    parts = [_HEAD]
    for section in sections:
        if not section.settings:
            continue
        if section.table:
            parts.append("\n" + _comment(section.doc) + f"{'#' if section.optional else ''}[{section.table}]\n")
        for setting in section.settings:
            dotted = f"{section.table}.{setting.name}" if section.table else setting.name
            parts.append(
                ("\n" if not section.table else "") + _comment(_words(setting)) + _line(setting, examples.get(dotted))
            )
    return "".join(parts)


def _words(setting: Setting) -> str:
    if setting.required:
        return f"{setting.doc} Must be given.".strip()
    known = setting.is_toml or not setting.default or "Default:" in setting.doc
    return setting.doc if known else f"{setting.doc} Default: {setting.default}."


def _line(setting: Setting, example: str | None) -> str:
    value = example or (setting.default if setting.is_toml else "")
    return f"#{setting.name} = {value}\n" if value else f"#{setting.name} =\n"


def _comment(text: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent="# ", subsequent_indent="# ") + "\n" if text else ""
