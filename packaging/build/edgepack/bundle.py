"""Makes one file for sites without any repository: packages, a signed list of their hashes, the key, an installer."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

from edgepack.faults import BuildError, run
from edgepack.repository import KEY_NAME, fingerprint


def make(packages: Path, into: Path, key: str, *, installer: Path, epoch: int) -> Path:
    """Make the file; not compressed, as the packages are.

    :param into: the file, whose name without ``.tar`` is the folder inside.
    :param key: fingerprint or e-mail address of a secret key in the GnuPG home.
    :param epoch: the time that everything carries, in seconds.
    :return: the file.
    :raises BuildError: there are no packages, or there is no such key.
    """
    found = sorted([*packages.glob("*.deb"), *packages.glob("*.rpm")])
    if not found:
        raise BuildError(f"{packages}: no packages there; run 'make packages' first")
    own = fingerprint(key)
    files: list[tuple[str, bytes]] = [(path.name, path.read_bytes()) for path in found]
    files.append(("install.sh", installer.read_bytes()))
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files)
    with TemporaryDirectory() as scratch:
        listed, signature = Path(scratch) / "SHA256SUMS", Path(scratch) / "SHA256SUMS.sig"
        keyring = Path(scratch) / "key"
        listed.write_text(sums, encoding="ascii")
        run(["gpg", "--batch", "--yes", "--local-user", own, "--detach-sign", "--output", signature, listed])
        run(["gpg", "--batch", "--yes", "--output", keyring, "--export", own])
        files += [
            ("SHA256SUMS", sums.encode()),
            ("SHA256SUMS.sig", signature.read_bytes()),
            (f"{KEY_NAME}.gpg", keyring.read_bytes()),
        ]
    into.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(into, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in sorted(files):
            entry = tarfile.TarInfo(f"{into.stem}/{name}")
            entry.size, entry.mtime = len(data), epoch
            entry.mode = 0o755 if name.endswith(".sh") else 0o644
            archive.addfile(entry, io.BytesIO(data))
    return into
