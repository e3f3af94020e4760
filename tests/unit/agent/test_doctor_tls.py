"""What ``edgectl doctor`` says about certificates, told by real servers that speak TLS."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from airflow_edge_agent.configuration import Loaded
from airflow_edge_agent.ctl.checks.network import dns, tls
from airflow_edge_agent.ctl.doctor import Check, Scene
from airflow_edge_agent.settings import Settings

SECONDS = 10


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA(organization_name="Plant CA", organization_unit_name="Edge")


@contextlib.contextmanager
def serving(certificate: trustme.LeafCert | None) -> Iterator[int]:
    """Greet whoever connects, with TLS if there is a certificate, and return the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if certificate is not None:
        certificate.configure_cert(context)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            # Ends when the listener is shut down.
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    connection.settimeout(SECONDS)
                    with connection, contextlib.suppress(OSError):
                        if certificate is None:
                            connection.recv(100)
                            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                        else:
                            with context.wrap_socket(connection, server_side=True) as secured:
                                secured.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(SECONDS)


def look(tmp_path: Path, port: int, authority: trustme.CA, *, host: str = "localhost", **more: str) -> Check:
    """Return what the doctor says about TLS."""
    trusted = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(trusted))
    settings = Settings.model_validate(
        {"server_url": f"https://{host}:{port}", "ca_file": str(trusted), "state_dir": str(tmp_path), **more}
    )
    scene = Scene(Loaded(settings, {}, [], enrolled=True))
    assert [check.verdict for check in dns(scene)] == ["ok", "ok"]
    (check,) = tls(scene)
    return check


def test_a_good_certificate(tmp_path: Path, authority: trustme.CA) -> None:
    until = datetime.now(UTC) + timedelta(days=100, hours=1)
    with serving(authority.issue_cert("localhost", not_after=until)) as port:
        check = look(tmp_path, port, authority)
    assert (check.verdict, check.remedy) == ("ok", None)
    assert check.found.endswith("valid for 100 days")


def test_one_that_soon_expires(tmp_path: Path, authority: trustme.CA) -> None:
    until = datetime.now(UTC) + timedelta(days=3, hours=1)
    with serving(authority.issue_cert("localhost", not_after=until)) as port:
        check = look(tmp_path, port, authority)
    assert (check.verdict, check.remedy) == ("warn", "renew the server's certificate")
    assert check.found.endswith("valid for 3 days")


def test_one_that_has_expired(tmp_path: Path, authority: trustme.CA) -> None:
    until = datetime.now(UTC) - timedelta(days=1)
    with serving(authority.issue_cert("localhost", not_after=until)) as port:
        check = look(tmp_path, port, authority)
    assert check.verdict == "fail"
    assert check.found.startswith("certificate has expired; issued by ")
    assert check.remedy is not None
    assert "clock" in check.remedy


def test_one_of_an_authority_that_is_not_trusted(tmp_path: Path, authority: trustme.CA) -> None:
    inspecting = trustme.CA(organization_name="Inspecting Proxy")
    with serving(inspecting.issue_cert("localhost")) as port:
        check = look(tmp_path, port, authority)
    assert check.verdict == "fail"
    assert check.found.endswith("issued by Inspecting Proxy")
    assert check.remedy is not None
    assert "ca_file" in check.remedy


def test_one_with_another_name(tmp_path: Path, authority: trustme.CA) -> None:
    with serving(authority.issue_cert("airflow.example.com")) as port:
        check = look(tmp_path, port, authority)
        assert check.verdict == "fail"
        assert "Hostname mismatch" in check.found
        # Which is fine if the configuration says so.
        assert look(tmp_path, port, authority, tls_server_name="airflow.example.com").verdict == "ok"


def test_a_server_that_speaks_no_tls(tmp_path: Path, authority: trustme.CA) -> None:
    with serving(None) as port:
        check = look(tmp_path, port, authority)
    assert (check.verdict, check.remedy) == ("fail", "does this port speak TLS?")
