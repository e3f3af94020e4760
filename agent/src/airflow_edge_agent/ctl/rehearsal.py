"""``edgectl enroll --dry-run``: what enrolment would write on this machine, and whether it could."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_edge_agent.configuration import Loaded

_DEFAULT = "default"


def writes(loaded: Loaded, given: Mapping[str, Any], drop_in: Path) -> list[tuple[Path, str]]:
    """Return the files that would be written, each with what for.

    :param given: what was said on the command line, by setting.
    """
    settings = loaded.settings
    files = [(drop_in, " and ".join(given))] if given else []
    identity = settings.state_dir / "identity.json"
    if not _exists(identity):
        files.append((identity, "how a copy of this machine is told from it"))
    before = "in the place of the present one" if _exists(settings.credential_file) else "with a new private key"
    return [*files, (settings.credential_file, f"the credential, {before}")]


def hindrance(files: list[tuple[Path, str]]) -> str | None:
    """Say in one line which of the files cannot be written; ``None``: all of them can."""
    for path, _ in files:
        folder = path.parent
        while not _exists(folder):
            folder = folder.parent
        if not os.access(folder, os.W_OK | os.X_OK):
            return f"{path}: {folder} cannot be written" + ("; try with sudo" if os.geteuid() else "")
    return None


def overruled(present: Loaded, given: Mapping[str, Any], config: Path, drop_in: Path) -> str | None:
    """Say in one line which of what was given would not count, because it is set where that wins; ``None``: nothing.

    :param present: the configuration as it is without it.
    """
    for name, value in given.items():
        origin = present.origins.get((name,), _DEFAULT)
        same = getattr(present.settings, name) == (value.rstrip("/") if name == "server_url" else value)
        if not same and origin not in (_DEFAULT, str(config), str(drop_in)):
            return f"{name} is set otherwise in {origin}, which wins; change it there"
    return None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        return False  # not for us to see; that it cannot be written is found then
