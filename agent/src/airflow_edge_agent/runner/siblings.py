"""Forks a process that is a child of this process's parent.

So the zygote, which holds nothing of any job, makes the processes, and the runner may wait for them, follow them and
end them like processes of its own.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
from typing import Final

_CLONE_PARENT: Final = 0x00008000
_CLONE_CHILD_CLEARTID: Final = 0x00200000
_CLONE_CHILD_SETTID: Final = 0x01000000
_PR_GET_TID_ADDRESS: Final = 40

_CLONE_NUMBERS = {"x86_64": 56, "aarch64": 220}
"""Number of the system call clone(2); both take the flags first and where to put the child's tid in fourth or fifth
place."""
_TID_ARGUMENT = {"x86_64": 3, "aarch64": 4}

# It keeps the interpreter's lock during a call. The child begins inside one, and nobody is there to give the lock back.
_LIBC = ctypes.PyDLL(None, use_errno=True)
_PYTHON = ctypes.pythonapi


class Cloner:
    """Forks siblings. For a process with one thread, to be made in the process that uses it."""

    def __init__(self) -> None:
        machine = platform.machine()
        self.by_clone = machine in _CLONE_NUMBERS and ctypes.sizeof(ctypes.c_void_p) == 8  # noqa: PLR2004 -- bytes
        """Whether the kernel is asked directly; else a process in between is forked, whose child the runner adopts."""
        if not self.by_clone:
            return
        flags = _CLONE_PARENT | signal.SIGCHLD
        arguments = [0] * 4
        if address := _tid_address():
            flags |= _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID
            arguments[_TID_ARGUMENT[machine] - 1] = address
        self._call = [ctypes.c_long(value) for value in (_CLONE_NUMBERS[machine], flags, *arguments)]
        _LIBC.syscall.restype = ctypes.c_long

    def fork(self) -> int:
        """Fork a sibling: return its pid here, and 0 in it.

        :raises OSError: there is no more memory, or no more processes are allowed.
        """
        return self._clone() if self.by_clone else _fork_twice()

    def _clone(self) -> int:
        # What os.fork() does around the call of the same name. Without it the child's interpreter would go on as its
        # parent's: with its locks, its random state, and what modules want done in a child left undone.
        _PYTHON.PyOS_BeforeFork()
        pid: int = _LIBC.syscall(*self._call)
        if pid == 0:
            _PYTHON.PyOS_AfterFork_Child()
            return 0
        number = ctypes.get_errno()
        _PYTHON.PyOS_AfterFork_Parent()
        if pid < 0:
            raise OSError(number, os.strerror(number))
        return pid


def _tid_address() -> int:
    """Return where the C library keeps this thread's id, 0 if the kernel does not tell.

    A fork of its own lets the kernel write the child's id there. If it stays the parent's, only what compares thread
    ids by the C library's own note is misled, and no such call crosses processes.
    """
    address = ctypes.c_void_p()
    if _LIBC.prctl(_PR_GET_TID_ADDRESS, ctypes.byref(address), 0, 0, 0) != 0 or not address.value:
        return 0
    return address.value if ctypes.c_int.from_address(address.value).value == os.getpid() else 0


def _fork_twice() -> int:
    """Fork a child whose own child is left to the nearest subreaper above: the runner."""
    read_end, write_end = os.pipe()
    between = os.fork()
    if between == 0:
        try:
            os.close(read_end)
            above = os.getpid()
            pid = os.fork()
            if pid == 0:
                # Only as the runner's child it may go on, or what it asks about its parent is answered wrongly.
                while os.getppid() == above:
                    os.sched_yield()
                os.close(write_end)
                return 0
            os.write(write_end, str(pid).encode())
        except OSError as error:
            os.write(write_end, str(-(error.errno or 1)).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as source:
        told = int(source.read() or b"-11")
    os.waitpid(between, 0)
    if told < 0:
        raise OSError(-told, os.strerror(-told))
    return told
