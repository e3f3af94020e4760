"""What an idle daemon gives back: in a process of its own, as it is about the whole process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from airflow_edge_agent.adapters.memory import _unchanged_files

_SMAPS = """\
00400000-00401000 r--p 00000000 fd:01 11 /usr/bin/python3.11
Anonymous:             0 kB
VmFlags: rd mr mw me
00401000-00500000 r-xp 00001000 fd:01 11 /usr/bin/python3.11
Rss:                2764 kB
Anonymous:             0 kB
00500000-00600000 r--p 00100000 fd:01 11 /usr/bin/python3.11
Anonymous:             4 kB
00600000-00700000 rw-p 00200000 fd:01 11 /usr/bin/python3.11
Anonymous:             0 kB
00700000-00800000 r--s 00000000 fd:01 12 /usr/lib/gconv/gconv-modules.cache
Anonymous:             0 kB
00800000-00900000 r--p 00000000 00:00 0
Anonymous:             0 kB
7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
"""

_PROGRAM = """
import ssl, pydantic, sqlite3
from pathlib import Path
from airflow_edge_agent.adapters.memory import give_back_memory
def pages_of_files():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    found = {line.split()[0]: int(line.split()[1]) for line in lines[1:]}
    return found["Rss:"] - found["Anonymous:"]
before = pages_of_files()
give_back_memory()
after = pages_of_files()
# All of it still works, its constants included.
pydantic.TypeAdapter(list[int]).validate_json("[1, 2]")
ssl.create_default_context()
assert sqlite3.connect(":memory:").execute("select 1").fetchone() == (1,)
print(after < before / 2)
"""


def test_only_what_cannot_have_been_changed_is_forgotten(tmp_path: Path) -> None:
    smaps = tmp_path / "smaps"
    smaps.write_text(_SMAPS)
    assert _unchanged_files(smaps) == [(0x400000, 0x401000), (0x401000, 0x500000)]


def test_code_is_given_back_and_comes_again_when_it_is_needed() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
