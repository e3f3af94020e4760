"""Stages the package ``airflow-edge-agent``: daemon, operator's command, units, manual."""

from __future__ import annotations

import shutil
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

from edgepack import bytecode, documents, environment, sbom
from edgepack.context import Context
from edgepack.faults import BuildError
from edgepack.stage import Stage

NAME = "airflow-edge-agent"
_HOME = f"/usr/lib/{NAME}"
_RUNNER_ENTRY = "airflow_edge_agent.runner.main:_parse"

_LAUNCHER = """\
#!{interpreter} -IS
# -I, -S: neither variables nor the system's site-packages have a say in what is imported.
import sys

sys.path.insert(0, "{site}")
from {module} import {function}

sys.exit({function}())
"""

_UNIT_FOLDERS = {
    ".service": "/usr/lib/systemd/system",
    ".socket": "/usr/lib/systemd/system",
    ".slice": "/usr/lib/systemd/system",
    ".timer": "/usr/lib/systemd/system",
    ".path": "/usr/lib/systemd/system",
    ".target": "/usr/lib/systemd/system",
}
_FOLDERS = {
    "system-preset": "/usr/lib/systemd/system-preset",
    "tmpfiles.d": "/usr/lib/tmpfiles.d",
    "sysusers.d": "/usr/lib/sysusers.d",
    "catalog": "/usr/lib/systemd/catalog",
    "needrestart": "/etc/needrestart/conf.d",
    "bin": "/usr/bin",
}
# Of programs that need not be there. RPM removes only folders that a package says are its own; several may say so.
_FOLDERS_OF_OTHERS = (
    "/etc/needrestart",
    "/etc/needrestart/conf.d",
    "/usr/share/fish",
    "/usr/share/fish/vendor_completions.d",
    "/usr/share/zsh/site-functions",
)
_FIRST_WITH_SYSTEMD_254 = (3, 13)
"""The Python of the first Debian with it, and of the RHEL after the last one without."""


def version(root: Path) -> str:
    """Return the agent's version from its source."""
    source = (root / "agent/src/airflow_edge_agent/__init__.py").read_text(encoding="utf-8")
    return next(line.split('"')[1] for line in source.splitlines() if line.startswith("__version__"))


def stage(context: Context) -> Stage:
    """Put all files of the package where they belong."""
    site = f"{_HOME}/lib/python{context.target.version}/site-packages"
    result = Stage(context.work / "agent", own=[_HOME, f"/usr/share/doc/{NAME}"])
    folder = result.path(f"{site}/x").parent
    environment.install(
        context.lock.of_package(NAME), folder, context.target, lock=context.lock, scratch=context.work / "agent-pins"
    )
    rules = context.description["agent"]["left_out"]["files"]
    environment.leave_out_files(folder, [pattern for rule in rules for pattern in rule["patterns"]])
    environment.normalise(folder)
    parts = sbom.components(folder)
    compile_ = partial(bytecode.compile_tree, stage=result.root, final="/", interpreter=context.interpreter)
    # Nobody asks for help on what is bundled: 0.9 MB less of the daemon's own memory.
    compile_(folder, docstrings=False)
    own = folder / "airflow_edge_agent"
    source = context.root / "agent/src/airflow_edge_agent"
    shutil.copytree(source, own, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    compile_(own)
    environment.set_modes(folder)

    # What runs a runner that has no task runtime, so that it can say so.
    environment.make(result.path(f"{_HOME}/x").parent, f"../../../bin/python{context.target.version}", context.target)
    scripts = _scripts(context.root)
    for name, entry in scripts.items():
        module, _, function = entry.partition(":")
        text = _LAUNCHER.format(interpreter=context.target.interpreter, site=site, module=module, function=function)
        result.write(f"/usr/bin/{name}", text, 0o755)
    stage_units(context.root / "systemd", result, newer=context.target.python >= _FIRST_WITH_SYSTEMD_254)
    texts = documents.make(entries(context.root), version=version(context.root), epoch=context.epoch)
    documents.put(texts, result, package=NAME)
    for name in _FOLDERS_OF_OTHERS:
        result.folder(name, only="rpm")
    result.folder("/etc/airflow-edge-agent/conf.d")
    result.own.append("/etc/airflow-edge-agent")
    result.copy(context.root / "packaging/agent/edge-agent.default", "/etc/default/edge-agent")
    result.configuration.add("/etc/default/edge-agent")
    context.put_papers(result, NAME, version(context.root), parts)
    return result


def stage_units(source: Path, result: Stage, *, newer: bool) -> None:
    """Put the units and what goes with them where systemd looks for them.

    :param newer: also the drop-ins for what only newer versions of systemd know.
    :raises BuildError: a file is of a kind that has no place.
    """
    for path in sorted(file for file in source.rglob("*") if file.is_file()):
        relative = path.relative_to(source)
        kind = relative.parts[0]
        if len(relative.parts) == 1 and path.suffix in _UNIT_FOLDERS:
            result.copy(path, f"{_UNIT_FOLDERS[path.suffix]}/{path.name}")
        elif kind == "newer":
            if newer:
                result.copy(path, f"/usr/lib/systemd/system/{relative.relative_to('newer')}")
        elif kind in _FOLDERS and relative.parts[1:] == (path.name,):
            installed = f"{_FOLDERS[kind]}/{path.name}"
            result.copy(path, installed, 0o755 if kind == "bin" else 0o644)
            if installed.startswith("/etc/"):
                result.configuration.add(installed)
        elif path.suffix != ".md":
            raise BuildError(f"{path}: edgepack/agent.py knows no place for it")


def entries(root: Path) -> dict[str, str]:
    """Return the programs that have a manual page, with what to call to find their parser."""
    return {**_scripts(root), "edge-runner": _RUNNER_ENTRY}


def _scripts(root: Path) -> dict[str, str]:
    with (root / "agent/pyproject.toml").open("rb") as file:
        project: dict[str, Any] = tomllib.load(file)["project"]
    return dict(project["scripts"])
