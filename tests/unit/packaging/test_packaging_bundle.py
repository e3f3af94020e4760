"""The one file for sites without a repository, and how its installer chooses and refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgepack import bundle, repository
from harness.signing import gnupg_home

INSTALLER = Path(__file__).parents[3] / "packaging/bundle/install.sh"
KEY = "test@airflow-edge-agent.invalid"

pytestmark = pytest.mark.skipif(not shutil.which("gpg"), reason="no gpg here")


@pytest.fixture
def unpacked(tmp_path: Path) -> Iterator[Path]:
    """Return a bundle of stand-ins for packages, unpacked; its key is there to sign others."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for name in ("airflow-edge-agent_1-1", "airflow-edge-agent_1-10", "airflow-edge-runtime_2-1"):
        for python in ("py311", "py399"):
            (packages / f"{name}.{python}_amd64.deb").write_text(name)
    with gnupg_home(tmp_path / "gnupg", KEY):
        made = bundle.make(packages, tmp_path / "b-bundle.tar", KEY, installer=INSTALLER, epoch=7)
        with tarfile.open(made) as archive:
            assert {entry.mtime for entry in archive} == {7}
            archive.extractall(tmp_path, filter="data")
        yield tmp_path / "b-bundle"


@pytest.fixture
def install(unpacked: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return the installer's call, on a system of stand-ins: root, Debian, amd64."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in {"id": "echo 0", "dpkg": "echo amd64", "apt-get": 'echo "apt-get $*"'}.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": f"{tools}:{os.environ['PATH']}"}
        command = ["sh", str(unpacked / "install.sh"), *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    return call


@pytest.mark.skipif(not Path("/usr/bin/python3.11").exists(), reason="the system's Python is not 3.11")
def test_the_newest_build_for_this_systems_python_is_taken(
    install: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = install("--fingerprint", repository.fingerprint(KEY))
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("apt-get"))
    assert line.split()[-2:] == [
        "./airflow-edge-agent_1-10.py311_amd64.deb",
        "./airflow-edge-runtime_2-1.py311_amd64.deb",
    ]
    assert "runtime" not in install("--agent-only").stdout


def test_what_is_damaged_or_of_somebody_else_is_refused(
    install: Callable[..., subprocess.CompletedProcess[str]], unpacked: Path
) -> None:
    refused = install("--fingerprint", "A" * 40)
    assert (refused.returncode, "not signed with the key" in refused.stderr) == (1, True)
    assert "40 hexadecimal digits" in install("--fingerprint", "A").stderr
    next(unpacked.glob("*agent_1-1.*")).write_text("something else")
    assert "damaged" in install().stderr
    # The list changed with it: nobody can sign that.
    sums = unpacked / "SHA256SUMS"
    sums.write_text(sums.read_text().replace("0", "1"))
    assert install("--fingerprint", repository.fingerprint(KEY)).returncode == 1
