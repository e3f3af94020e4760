"""The same source gives the same packages, bit by bit, and they do not tell where they were made."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgepack.context import source_date
from machine.image import SOURCE
from packages.conftest import Built, build


def test_another_build_elsewhere_is_byte_identical(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a copy of the source, in other folders, another locale, time zone, home and umask, at another time."""
    elsewhere = tmp_path / "a-folder-with-another-name"
    elsewhere.mkdir()
    copy = tmp_path / "copy of the source"
    listed = subprocess.run(["git", "-C", SOURCE, "ls-files", "-z"], check=True, capture_output=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SOURCE / name, copy / name)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(source_date(SOURCE)))
    monkeypatch.setenv("TMPDIR", str(elsewhere))
    monkeypatch.setenv("HOME", str(elsewhere))
    monkeypatch.setenv("PYTHONHASHSEED", "4711")
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    monkeypatch.setenv("LC_ALL", "C")
    build("--fast", "--release", "1", "--into", str(tmp_path / "again"), source=copy, umask=0o077)
    assert digests(tmp_path / "again") == digests(built.first)
    assert len(digests(built.first)) == 4


@pytest.mark.sample
def test_no_path_of_the_builder_is_inside(built: Built) -> None:
    traces = [
        str(SOURCE).encode(),
        b"/edgepack-",
        str(Path(sys.base_prefix)).encode(),
        str(Path.home()).encode() + b"/.",
    ]
    # What the sources themselves say.
    traces = [trace for trace in traces if trace not in (b"/usr", b"/root/.")]
    for path in sorted(built.first.glob("*.deb")):
        seen = 0
        for name, data in contents(path):
            seen += 1
            found = [trace for trace in traces if trace in data]
            assert found == [], (path.name, name)
        assert seen > 500


def contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a .deb with what is in them."""
    done = subprocess.run(["dpkg-deb", "--fsys-tarfile", path], check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        for entry in archive:
            if entry.isfile() and (file := archive.extractfile(entry)) is not None:
                yield entry.name, file.read()


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
