"""Gives memory back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
from pathlib import Path

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) [0-9a-f]+ \S+ (\d+)")


def give_back_memory() -> None:
    """Return what start-up or a job has left free inside the process, and the code that only they have used.

    Together about 10 MB after the start. Code that is needed again comes back from the file system.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        if hasattr(libc, "malloc_trim"):  # only glibc keeps what was freed
            libc.malloc_trim(0)
        for start, end in _unchanged_files():
            libc.madvise(start, end - start, _DONT_NEED)


_DONT_NEED = 4
"""``MADV_DONTNEED`` of madvise(2): of a page that is the same as in its file, nothing is lost."""


def _unchanged_files(smaps: Path = Path("/proc/self/smaps")) -> list[tuple[int, int]]:
    """Find the parts of files in memory that this process has not changed and cannot change: code and constants."""
    found = []
    with smaps.open(encoding="ascii", errors="replace") as lines:
        where: tuple[int, int] | None = None
        for line in lines:
            if (mapping := _MAPPING.match(line)) is not None:
                start, end, rights, inode = mapping.groups()
                constant = rights[1] == "-" and rights[3] == "p" and inode != "0"
                where = (int(start, 16), int(end, 16)) if constant else None
            elif where is not None and line.startswith("Anonymous:") and line.split()[1] == "0":
                # Pages that the loader has changed before it took the right to write away are anonymous.
                found.append(where)
    return found
