"""The limit of open files, in processes of their own: a limit that was lowered does not come back."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

_PROGRAM = """
import json, resource, sys
from airflow_edge_server.descriptors import make_room
soft, hard, connections = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
problem = make_room(connections)
print(json.dumps([problem, *resource.getrlimit(resource.RLIMIT_NOFILE)]))
"""


def made_room(soft: int, hard: int, connections: int) -> list[Any]:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(soft), str(hard), str(connections)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return list(json.loads(done.stdout))


def test_the_limit_is_raised_where_that_is_allowed() -> None:
    assert made_room(256, 2_048, 1_000) == [None, 1_256, 2_048]


def test_a_limit_that_is_enough_stays() -> None:
    assert made_room(2_000, 2_048, 1_000) == [None, 2_000, 2_048]


def test_where_it_is_not_allowed_it_says_what_to_raise() -> None:
    problem, soft, hard = made_room(256, 512, 1_000)
    assert (soft, hard) == (512, 512)
    assert "max_connections is 1000" in problem
    assert "no more than 512 files" in problem
    assert "to 1256" in problem
