"""What the distributions' own checkers say. Every exception has a reason, where it is made."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from machine.image import SOURCE
from packages.conftest import Built
from packages.machine import AGENT_PACKAGE, RUNTIME_PACKAGE

each_package = pytest.mark.parametrize(
    "package", [pytest.param(AGENT_PACKAGE, marks=pytest.mark.sample), RUNTIME_PACKAGE]
)


@each_package
@pytest.mark.skipif(not shutil.which("lintian"), reason="no lintian here")
def test_lintian_has_nothing_to_complain_about(built: Built, package: str) -> None:
    files = [str(path) for path in built.second.glob(f"{package}_*.deb")]
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error,warning", "--tag-display-limit", "0", *files],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")


@each_package
@pytest.mark.skipif(not shutil.which("rpmlint"), reason="no rpmlint here")
def test_rpmlint_has_nothing_to_complain_about(built: Built, package: str) -> None:
    files = [str(path) for path in built.second.glob(f"{package}-[0-9]*.rpm")]
    command = ["rpmlint", "--config", str(SOURCE / "packaging/rpmlint.toml"), *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = [line for line in done.stdout.splitlines() if ": W: " in line or ": E: " in line]
    assert said == []
    assert done.returncode == 0, done.stdout + done.stderr
