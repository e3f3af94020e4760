"""The C library's memory: as few arenas as the runner's many threads can do with."""

from __future__ import annotations

import contextlib
import ctypes

_M_ARENA_MAX = -8
"""Of mallopt(3)."""


def use_one_arena() -> None:
    """Let all threads of this process share one arena.

    Each would get one of its own, and keep there what it has freed. Python's lock lets one run at a time anyway.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Give back to the kernel what was freed."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
