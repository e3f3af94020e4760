"""The same source gives the same packages, bit by bit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from packages.conftest import Built, build


def test_another_build_elsewhere_is_byte_identical(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "a-folder-with-another-name"
    elsewhere.mkdir()
    monkeypatch.setenv("TMPDIR", str(elsewhere))
    monkeypatch.setenv("PYTHONHASHSEED", "4711")
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    build("--fast", "--release", "1", "--into", str(tmp_path / "again"))
    assert digests(tmp_path / "again") == digests(built.first)
    assert len(digests(built.first)) == 4


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
