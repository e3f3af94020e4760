"""Files in folders that tasks can reach."""

from __future__ import annotations

import json
import os
from pathlib import Path


def write_whole(path: Path, content: object, *, sync: bool) -> None:
    """Write a JSON file that is there in full or not at all.

    :param sync: whether it is to outlive a crash of the host.
    :raises OSError: it cannot be written.
    """
    # A new file, then renamed: what a task may have put at either name is replaced, not followed.
    temporary = path.with_name(f".{path.name}")
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags, 0o660), "w", encoding="utf-8") as file:
        json.dump(content, file)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)
    if sync:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlive a crash of the host.

    :raises OSError: it cannot be done.
    """
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
