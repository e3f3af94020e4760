"""Makes the maintainer scripts: the same steps for both formats, called as each package manager calls them.

A script is the shared functions (``packaging/scripts/common.sh``), the package's steps (``agent.sh``, ``runtime.sh``)
and a few lines that say when which step is due (``deb-postinst.sh``, ``rpm-post.sh``, ...), with the package's units
filled in.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgepack.faults import BuildError
from edgepack.stage import Format

NAMES: dict[Format, tuple[str, ...]] = {
    "deb": ("postinst", "prerm", "postrm"),
    "rpm": ("post", "preun", "postun", "posttrans"),
}


def render(source: Path, package: str, into: Path, values: Mapping[str, str]) -> list[Path]:
    """Write all scripts of a package into a folder for each format.

    :param package: ``agent`` or ``runtime``.
    :param values: what ``@NAME@`` stands for.
    :return: the scripts.
    :raises BuildError: something is left to be filled in.
    """
    written = []
    for format_, names in NAMES.items():
        parts = [source / "common.sh", source / f"{format_}.sh", source / f"{package}.sh"]
        body = "\n".join(_without_first_comment(path) for path in parts)
        for name in names:
            text = f"#!/bin/sh\nset -eu\n\n{body}\n{_without_first_comment(source / f'{format_}-{name}.sh')}"
            for key, value in values.items():
                text = text.replace(f"@{key}@", value)
            if "@" in (left := text.replace("$@", "")):
                where = next(line for line in left.splitlines() if "@" in line)
                raise BuildError(f"{format_} {name}: nothing is known for '{where.strip()}'")
            path = into / format_ / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            path.chmod(0o755)
            written.append(path)
    return written


def _without_first_comment(path: Path) -> str:
    """Return a part without the line that tells shellcheck how to read it alone."""
    lines = path.read_text(encoding="utf-8").splitlines()
    while lines and lines[0].startswith("# shellcheck shell="):
        lines.pop(0)
    return "\n".join(lines).strip() + "\n"
