"""Files that tasks can reach: read so that nothing a task puts there leads anywhere else.

The runner's folder belongs to the user that tasks run as. A task may replace any file in it, by a link to one that
only the daemon can read, or by a pipe that never ends. So each step of the way is opened without following links, and
what is found must be a plain file of that user with this one name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class ForeignFolder:
    """The runner's folders, one for each job.

    :param root: the runner's folder. Who owns it is whom files in it must belong to; the way there is trusted.
    :param name: of the folder in it that holds the jobs'.
    """

    def __init__(self, root: Path, name: str) -> None:
        self._root = root
        self._name = name

    @contextlib.contextmanager
    def open(self, job_id: str, name: str, flags: int = os.O_RDONLY) -> Iterator[int]:
        """Open a file of a job.

        :raises OSError: there is none, or it is not what it should be.
        """
        with self._job(job_id) as (folder, owner):
            # Without waiting: a pipe has nobody at its other end.
            file = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=folder)
            try:
                found = os.fstat(file)
                if not stat.S_ISREG(found.st_mode) or found.st_uid != owner or found.st_nlink != 1:
                    raise PermissionError(f"{self._root / self._name / job_id / name} is no plain file of the runner")
                yield file
            finally:
                os.close(file)

    def has(self, job_id: str, *names: str) -> bool:
        """Tell whether a job has something by one of these names, whatever it is."""
        with contextlib.suppress(OSError), self._job(job_id) as (folder, _):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    os.stat(name, dir_fd=folder, follow_symlinks=False)
                    return True
        return False

    def unlink(self, job_id: str, name: str) -> None:
        """Remove something of a job's, if it is there. Never raises."""
        with contextlib.suppress(OSError), self._job(job_id) as (folder, _):
            os.unlink(name, dir_fd=folder)

    def names(self) -> list[str]:
        """Return the names of all jobs' folders."""
        with contextlib.suppress(OSError), self._all() as (folder, _):
            return sorted(os.listdir(folder))  # noqa: PTH208 -- by descriptor, which no Path takes
        return []

    def remove(self, job_id: str) -> None:
        """Remove a job's folder. Never raises; what the daemon may not remove stays."""
        with contextlib.suppress(OSError), self._all() as (folder, _):
            shutil.rmtree(job_id, ignore_errors=True, dir_fd=folder)

    @contextlib.contextmanager
    def _all(self) -> Iterator[tuple[int, int]]:
        root = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            owner = os.fstat(root).st_uid
            folder = os.open(self._name, _DIRECTORY, dir_fd=root)
        finally:
            os.close(root)
        try:
            yield folder, owner
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def _job(self, job_id: str) -> Iterator[tuple[int, int]]:
        with self._all() as (folder, owner):
            job = os.open(job_id, _DIRECTORY, dir_fd=folder)
            try:
                yield job, owner
            finally:
                os.close(job)
