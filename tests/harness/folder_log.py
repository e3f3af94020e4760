"""Airflow's remote logging to a folder, through fsspec: what its handlers for object stores do, with ``file://``.

For ``[logging] logging_config_class = harness.folder_log.LOGGING_CONFIG``. As they do, it appends to what is there, and
deletes what it has uploaded.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import fsspec
from airflow.config_templates.airflow_local_settings import BASE_LOG_FOLDER, DEFAULT_LOGGING_CONFIG

VARIABLE = "FOLDER_LOG_URL"

LOGGING_CONFIG = DEFAULT_LOGGING_CONFIG


class FolderLogIO:
    """One folder."""

    processors = ()

    def __init__(self, base_log_folder: Path, url: str) -> None:
        self.base_log_folder = base_log_folder
        self.files, self.root = fsspec.core.url_to_fs(url)

    def upload(self, path: os.PathLike[str] | str, ti: Any = None) -> None:
        """Upload one file below the log folder, and delete the folder it is in."""
        local = self.base_log_folder / path
        if not local.is_file():
            return
        target = f"{self.root}/{local.relative_to(self.base_log_folder)}"
        data = local.read_bytes()
        if self.files.exists(target):
            data = self.files.cat_file(target) + b"\n" + data
        self.files.makedirs(target.rpartition("/")[0], exist_ok=True)
        self.files.pipe_file(target, data)
        shutil.rmtree(local.parent)

    def read(self, relative_path: str, ti: Any) -> tuple[list[str], list[str] | None]:
        """Read all files whose names begin with that path."""
        found = sorted(self.files.glob(f"{self.root}/{relative_path}*"))
        if not found:
            return [], None
        return [f"file://{name}" for name in found], [self.files.cat_file(name).decode() for name in found]


REMOTE_TASK_LOG = FolderLogIO(Path(BASE_LOG_FOLDER), os.environ.get(VARIABLE, "memory://"))
