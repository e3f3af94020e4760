"""Puts off modules of the standard library that others import at their top and seldom use.

Each brings a family along and stays in memory for good; an idle daemon is small because of what it does not load.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import threading
from types import ModuleType
from typing import Any

SELDOM_USED = (
    # With http.client: 1.6 MB. Imported for proxies by the WebSocket library and us, used where a proxy is set.
    "urllib.request",
    # With tempfile, bz2 and lzma: 0.5 MB. Imported by importlib.metadata, for packages in archives.
    "zipfile",
)

_loading = threading.RLock()


class _Postponed(ModuleType):
    """A module that loads itself when something is looked up in it.

    ``importlib.util.LazyLoader`` will not do: with it, the second import of a module loads it.
    """

    def __getattr__(self, name: str) -> Any:
        with _loading:
            if type(self) is _Postponed and self.__spec__ is not None and self.__spec__.loader is not None:
                self.__spec__.loader.exec_module(self)
                self.__class__ = ModuleType  # type: ignore[assignment] # it is one from now on
        return getattr(self, name)


def stay_small() -> None:
    """Prepare this process for a long idle life. To be called before the rest of the daemon is imported."""
    # Looking for plugins of pydantic reads the metadata of every package, and none could be ours.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
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
