"""A throw-away home for GnuPG, whose agent does not outlive it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def gnupg_home(home: Path, key: str | None = None) -> Iterator[None]:
    """Make ``home`` GnuPG's for the block; for the address ``key`` it gets a secret key without a passphrase."""
    home.mkdir(mode=0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GNUPGHOME", str(home))
        try:
            if key is not None:
                quick = ["gpg", "--batch", "--quiet", "--passphrase", "", "--quick-generate-key", key]
                subprocess.run([*quick, "ed25519", "sign", "never"], check=True, capture_output=True)
            yield
        finally:
            subprocess.run(["gpgconf", "--kill", "all"], check=False, capture_output=True)
