"""Keeps out of memory what others import at their top and seldom use, or what is needed only once.

A module brings a family along and stays for good; an idle daemon is small because of what it does not load.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import pickle
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

SELDOM_USED: dict[str, tuple[str, ...]] = {
    # With http.client: 1.6 MB. Imported for proxies by the WebSocket library and us, used where a proxy is set.
    "urllib.request": (),
    # With email and csv: 1.1 MB. Pydantic takes a function out of it, which it calls when it looks for plugins.
    "importlib.metadata": ("entry_points",),
    # 0.1 MB. For what we say of a word that nobody knows.
    "difflib": (),
    # 0.2 MB. Imported by shutil, for archives.
    "bz2": (),
    "lzma": (),
}
"""Modules, and functions that others take out of them at their top without calling them."""

_loading = threading.RLock()
_under_way: list[ModuleType] = []

_R = TypeVar("_R")


class _Postponed(ModuleType):
    """A module that loads itself when something is looked up in it, or a function of it is called.

    ``importlib.util.LazyLoader`` will not do: with it, the second import of a module loads it.
    """

    def __getattr__(self, name: str) -> Any:
        if name in SELDOM_USED.get(self.__name__, ()):
            return lambda *args, **more: _loaded(self, name)(*args, **more)  # noqa: PLW0108 -- loads when called
        return _loaded(self, name)


def _loaded(module: ModuleType, name: str) -> Any:
    with _loading:
        if module in _under_way:
            # A package asks itself for parts that it is about to import.
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r} yet")
        if type(module) is _Postponed and module.__spec__ is not None and module.__spec__.loader is not None:
            _under_way.append(module)
            try:
                module.__spec__.loader.exec_module(module)
            finally:
                _under_way.remove(module)
            module.__class__ = ModuleType  # type: ignore[assignment] # it is one from now on
    return getattr(module, name)


def stay_small() -> None:
    """Prepare this process for a long idle life. To be called before the rest of the daemon is imported."""
    # Looking for plugins of pydantic reads the metadata of every package, and none could be ours.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # As it is by default. To find that out, zoneinfo, which pydantic imports, would load 0.2 MB of sysconfig.
    os.environ.setdefault("PYTHONTZPATH", "/usr/share/zoneinfo:/usr/lib/zoneinfo:/usr/share/lib/zoneinfo:/etc/zoneinfo")
    postpone(*SELDOM_USED)


def postpone(*names: str) -> None:
    """Make the next import of each module give one that loads itself when something of it is used.

    Modules that are loaded already are left alone.
    """
    for name in names:
        parent, _, last = name.rpartition(".")
        if name in sys.modules or (spec := importlib.util.find_spec(name)) is None:
            continue
        module = importlib.util.module_from_spec(spec)
        module.__class__ = _Postponed
        sys.modules[name] = module
        if parent:
            # What an ordinary import of a submodule does, and `import a.b` relies on.
            setattr(importlib.import_module(parent), last, module)


def in_a_child(work: Callable[[], _R]) -> _R:
    """Do work in a process of its own, so that what it loads leaves memory with it.

    To be called while there is no other thread. Where there can be no child, it is done here.

    :param work: its result, or exception, goes through pickle.
    """
    told = b""
    with contextlib.suppress(OSError):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            _work_and_end(work, reader, writer)
        os.close(writer)
        with open(reader, "rb") as pipe:  # noqa: PTH123 -- a file descriptor
            told = pipe.read()
        os.waitpid(pid, 0)
    if not told:
        return work()
    done, result = pickle.loads(told)  # noqa: S301 -- our own words
    if not done:
        raise result
    found: _R = result
    return found


def _work_and_end(work: Callable[[], object], reader: int, writer: int) -> None:
    # Whatever happens, a child must not go on as a second daemon.
    try:
        os.close(reader)
        try:
            told = pickle.dumps((True, work()))
        except Exception as error:  # noqa: BLE001 -- passed on as it is
            told = pickle.dumps((False, error))
        with open(writer, "wb") as pipe:
            pipe.write(told)
    finally:
        os._exit(0)
