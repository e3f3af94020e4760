"""Whom the system trusts, without all of it in memory where that can be had."""

from __future__ import annotations

import re
import ssl
from pathlib import Path

_HASHED = re.compile(r"[0-9a-f]{8}\.\d+")
"""Name under which OpenSSL looks for the certificate of an issuer."""

_CERTIFICATE = re.compile(rb"-----BEGIN [A-Z ]*CERTIFICATE-----(.*?)-----END", re.DOTALL)


def trust_the_system(context: ssl.SSLContext) -> None:
    """Trust whom the system trusts.

    Where a folder has each of its certificates under OpenSSL's own name for it, as on Debian, the one that is needed is
    opened when it is needed: all of them in memory would be 0.8 MB.
    """
    places = ssl.get_default_verify_paths()
    if _covers(places.capath, places.cafile):
        context.load_verify_locations(capath=places.capath)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)


def _covers(folder: str | None, bundle: str | None) -> bool:
    """Tell whether OpenSSL finds in the folder everything that is in the bundle; either may not be there."""
    if folder is None or bundle is None:
        return False
    try:
        wanted = _certificates(Path(bundle))
        found = (path for path in Path(folder).iterdir() if _HASHED.fullmatch(path.name))
        return bool(wanted) and wanted <= {certificate for path in found for certificate in _certificates(path)}
    except OSError:
        return False


def _certificates(path: Path) -> set[bytes]:
    # A bundle may end its lines otherwise than the files that it was made from.
    return {b"".join(body.split()) for body in _CERTIFICATE.findall(path.read_bytes())}
