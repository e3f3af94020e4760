"""Whom the system trusts: from a folder of single certificates, or from a bundle, whichever has them all."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
import trustme

from airflow_edge_agent.adapters.truststore import trust_the_system

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program")


class System:
    """A system with its own authorities; OpenSSL is told where they are by variables."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.authorities = [trustme.CA(organization_name=f"Authority {number}") for number in range(3)]
        self.folder = folder / "certs"
        self.folder.mkdir()
        self.bundle = self.folder / "ca-certificates.crt"
        self.bundle.write_bytes(b"".join(authority.cert_pem.bytes() for authority in self.authorities))
        for number, authority in enumerate(self.authorities):
            authority.cert_pem.write_to_path(str(self.folder / f"authority-{number}.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(self.bundle))
        monkeypatch.setenv("SSL_CERT_DIR", str(self.folder))

    def rehash(self) -> None:
        subprocess.run(["openssl", "rehash", str(self.folder)], check=True, capture_output=True)

    def trusted(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trust_the_system(context)
        return context


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    return System(tmp_path, monkeypatch)


def accepts(context: ssl.SSLContext, authority: trustme.CA) -> bool:
    """Shake hands in memory with a server whose certificate the authority has issued."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(serving)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(to_client, to_server, server_hostname="localhost")
    server = serving.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for end in (client, server):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return False
    return True


def test_certificates_are_read_one_by_one_where_they_can_be_found_so(system: System) -> None:
    system.rehash()
    context = system.trusted()
    assert context.cert_store_stats()["x509"] == 0, "none is in memory"
    assert all(accepts(context, authority) for authority in system.authorities)
    assert not accepts(context, trustme.CA())
    assert context.cert_store_stats()["x509"] == 3, "those that were asked for"


def test_a_bundle_counts_that_has_more_than_the_folder(system: System) -> None:
    context = system.trusted()
    assert context.cert_store_stats()["x509"] == 3, "there is a folder, but without names for OpenSSL"
    system.rehash()
    # As somebody does who knows no update-ca-certificates.
    own = trustme.CA(organization_name="Plant CA")
    system.bundle.write_bytes(system.bundle.read_bytes() + own.cert_pem.bytes())
    assert accepts(system.trusted(), own)
