"""Implementations of the agent's ports in memory, and a scriptable server side.

They pass the same contract suites as the real ones (``tests/contract``).
"""

from fakes.host import FixedProbe, MemoryNotifier
from fakes.runner import MemoryRunner
from fakes.server import ScriptedServer
from fakes.store import MemoryJobStore
from fakes.transport import MemoryLink, MemoryTransport

__all__ = [
    "FixedProbe",
    "MemoryJobStore",
    "MemoryLink",
    "MemoryNotifier",
    "MemoryRunner",
    "MemoryTransport",
    "ScriptedServer",
]
