"""What may go wrong while building."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


class BuildError(Exception):
    """The packages cannot be built. The message says what, where and how to mend it."""


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
) -> str:
    """Run a program and return what it printed.

    :param env: its whole environment; ``None``: ours.
    :raises BuildError: it is not there, or it failed; with its last words.
    """
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            [str(part) for part in command], cwd=cwd, env=env, input=stdin, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise BuildError(
            f"{command[0]}: no such program; 'make packages' and docs/packages.md say what is needed"
        ) from None
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip()).splitlines()[-15:]
        raise BuildError("\n".join([f"{name} failed ({done.returncode}): {' '.join(map(str, command[:6]))}", *words]))
    return done.stdout
