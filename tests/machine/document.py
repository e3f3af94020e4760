"""Writes the tables of exposure into ``docs/systemd.md``, from the units as they are."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from harness.processes import Keeper
from machine import nspawn
from machine.edge import AGENT, RUNNER
from machine.exposure import table
from machine.fixtures import CACHE
from machine.image import BOOKWORM, SOURCE, Images
from machine.nspawn import NspawnMachine

PAGE = SOURCE / "docs" / "systemd.md"


def main() -> int:
    """Boot a machine, ask systemd, and write the page."""
    if reason := nspawn.missing():
        print(f"no machine can be booted here: {reason}", file=sys.stderr)
        return 1
    layers = Images(CACHE).agent(BOOKWORM, with_runtime=False)
    page = PAGE.read_text()
    with (
        tempfile.TemporaryDirectory(prefix="edge-docs-") as folder,
        Keeper() as keeper,
        NspawnMachine(Path(folder) / "m", keeper=keeper, layers=layers) as machine,
    ):
        for unit in (AGENT, RUNNER):
            text = f"<!-- exposure {unit} -->\n{table(machine, unit)}<!-- end -->"
            page, count = re.subn(f"<!-- exposure {unit} -->\n.*?<!-- end -->", lambda _: text, page, flags=re.DOTALL)  # noqa: B023  used at once
            assert count == 1, f"{PAGE}: no place for the table of {unit}"
    PAGE.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
