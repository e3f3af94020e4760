"""What the distributions' own checkers say. Every exception has a reason, where it is made."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from machine.image import SOURCE
from packages.conftest import Built


@pytest.mark.skipif(not shutil.which("lintian"), reason="no lintian here")
def test_lintian_has_nothing_to_complain_about(built: Built) -> None:
    files = [str(path) for path in sorted(built.second.glob("*.deb"))]
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error,warning", "--tag-display-limit", "0", *files],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif(not shutil.which("rpmlint"), reason="no rpmlint here")
def test_rpmlint_has_nothing_to_complain_about(built: Built) -> None:
    files = [str(path) for path in sorted(built.second.glob("*.rpm"))]
    command = ["rpmlint", "--config", str(SOURCE / "packaging/rpmlint.toml"), *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = [line for line in done.stdout.splitlines() if ": W: " in line or ": E: " in line]
    assert said == []
    assert done.returncode == 0, done.stdout + done.stderr
