"""What a runner was loaded from, so that a daemon sees when something else is on disk now."""

from __future__ import annotations

import contextlib
import sys
import sysconfig
from pathlib import Path


def marks() -> dict[str, str]:
    """Return the files and folders that this runner's code and task runtime consist of, each with its mark.

    Of the task runtime's packages only their folder: its time changes with every package that comes or
    goes, and with every change of a version.
    """
    interpreter = Path(sys.executable)
    places = [*sorted(Path(__file__).parent.glob("*.py")), interpreter, interpreter.parent.parent / "pyvenv.cfg"]
    places += [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    found = {}
    for place in places:
        # A runner may have been given what its user could not open: nobody will miss the mark.
        with contextlib.suppress(PermissionError):
            found[str(place)] = mark(place)
    return {place: sign for place, sign in found.items() if sign is not None}


def mark(place: Path) -> str | None:
    """Return what changes when a file is replaced or a folder's content changes; ``None``: there is nothing.

    :raises PermissionError: we may not look.
    """
    try:
        found = place.stat()
    except PermissionError:
        raise
    except OSError:
        return None
    # Packages of an operating system may all have the same time; a replaced file is another one, with another number.
    return f"{found.st_ino} {found.st_size} {found.st_mtime_ns}"
