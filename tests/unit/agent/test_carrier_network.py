"""Proxies, certificates and names: every carrier treats them alike."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import socket
import ssl
import threading
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from airflow_edge_agent.adapters.http import HttpTransport
from airflow_edge_agent.adapters.network import Network, proxy_for
from airflow_edge_agent.adapters.websocket import WebSocketTransport
from airflow_edge_agent.ports import Transport, TransportError
from airflow_edge_agent.protocol.frames import Accept, Welcome
from fakes import ScriptedServer
from fakes.credentials import make_prover
from fakes.frames import make_hello, make_presence, new_id
from fakes.http_server import AgentApi, Request, serve
from fakes.proxy import Proxy

PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")

Carrier = type[HttpTransport] | type[WebSocketTransport]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(params=[HttpTransport, WebSocketTransport], ids=["http", "websocket"])
def carrier(request: pytest.FixtureRequest) -> Carrier:
    kind: Carrier = request.param
    return kind


class Site:
    """A server with TLS, its authority, and files for a client."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.ca_file = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(str(self.ca_file))
        mine = self.authority.issue_cert("press-07@example.com")
        self.client_cert, self.client_key = folder / "client.pem", folder / "client.key"
        mine.cert_chain_pems[0].write_to_path(str(self.client_cert))
        mine.private_key_pem.write_to_path(str(self.client_key))
        self.client_key.chmod(0o600)
        self.server = ScriptedServer()
        self.requests: list[Request] = []
        self.names: list[str | None] = []
        self._api = AgentApi(self.server)

    async def __call__(self, request: Request) -> Any:
        self.requests.append(request)
        return await self._api(request)

    @asynccontextmanager
    async def serving(self, name: str = "127.0.0.1", *, wants_certificate: bool = False) -> AsyncIterator[int]:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.authority.issue_cert(name).configure_cert(tls)
        if wants_certificate:
            self.authority.configure_trust(tls)
            tls.verify_mode = ssl.CERT_REQUIRED

        def note(_: object, asked: str | None, __: object) -> None:
            self.names.append(asked)

        tls.sni_callback = note
        async with serve(self, tls) as port:
            yield port


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def talk(kind: Carrier, url: str, network: Network) -> None:
    """Open a session and say something."""
    transport: Transport = kind(url, make_prover(), network)
    try:
        link = await asyncio.wait_for(transport.connect(make_hello(), make_presence), 20)
        try:
            (welcome,) = await link.receive()
            assert isinstance(welcome, Welcome)
            await link.send([Accept(job_id=new_id(), fence=1)])
        finally:
            await link.close()
    finally:
        await transport.close()


async def test_a_tunnel_through_a_proxy(carrier: Carrier, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Proxy()
    async with site.serving("airflow.example") as port, proxy.running() as address:
        monkeypatch.setenv("HTTPS_PROXY", address)
        await talk(carrier, f"https://airflow.example:{port}", Network(ca_file=site.ca_file))
    assert set(proxy.asked) == {f"CONNECT airflow.example:{port}"}
    assert set(site.names) == {"airflow.example"}


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_a_proxy_for_plain_http(carrier: Carrier, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    proxy = Proxy()
    api = AgentApi(ScriptedServer())
    async with serve(api) as port, proxy.running() as address:
        monkeypatch.setenv(variable, address)
        await talk(carrier, f"http://airflow.example:{port}", Network())
    assert proxy.asked
    assert all(f"airflow.example:{port}" in asked for asked in proxy.asked)


async def test_a_proxy_that_wants_a_password(carrier: Carrier, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Proxy(credentials="Basic " + base64.b64encode(b"me:s3cret").decode())
    async with site.serving("airflow.example") as port, proxy.running() as address:
        url = f"https://airflow.example:{port}"
        monkeypatch.setenv("HTTPS_PROXY", address.replace("//", "//me:s3cret@"))
        await talk(carrier, url, Network(ca_file=site.ca_file))
        monkeypatch.setenv("HTTPS_PROXY", address.replace("//", "//me:wr0ng@"))
        with pytest.raises(TransportError, match="HTTPS_PROXY") as caught:
            await talk(carrier, url, Network(ca_file=site.ca_file))
    assert "wr0ng" not in str(caught.value)


@pytest.mark.parametrize("exception", ["127.0.0.1", "example.com,127.0.0.1", "*"])
async def test_hosts_that_need_no_proxy(
    carrier: Carrier, site: Site, monkeypatch: pytest.MonkeyPatch, exception: str
) -> None:
    proxy = Proxy()
    async with site.serving() as port, proxy.running() as address:
        monkeypatch.setenv("HTTPS_PROXY", address)
        monkeypatch.setenv("NO_PROXY", exception)
        await talk(carrier, f"https://127.0.0.1:{port}", Network(ca_file=site.ca_file))
    assert proxy.asked == []


async def test_another_name_in_the_certificate(carrier: Carrier, site: Site) -> None:
    async with site.serving("airflow.internal") as port:
        url = f"https://127.0.0.1:{port}"
        with pytest.raises(TransportError, match="tls_server_name"):
            await talk(carrier, url, Network(ca_file=site.ca_file))
        site.names.clear()
        await talk(carrier, url, Network(ca_file=site.ca_file, tls_server_name="airflow.internal"))
    assert set(site.names) == {"airflow.internal"}


async def test_another_name_behind_a_proxy(carrier: Carrier, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Proxy()
    async with site.serving("airflow.internal") as port, proxy.running() as address:
        monkeypatch.setenv("HTTPS_PROXY", address)
        network = Network(ca_file=site.ca_file, tls_server_name="airflow.internal")
        await talk(carrier, f"https://gateway.example:{port}", network)
    assert set(site.names) == {"airflow.internal"}
    assert set(proxy.asked) == {f"CONNECT gateway.example:{port}"}


async def test_a_server_that_wants_to_know_who_we_are(carrier: Carrier, site: Site) -> None:
    async with site.serving(wants_certificate=True) as port:
        url = f"https://127.0.0.1:{port}"
        with pytest.raises(TransportError):
            await talk(carrier, url, Network(ca_file=site.ca_file))
        await talk(carrier, url, Network(site.ca_file, site.client_cert, site.client_key))
    assert site.requests
    for request in site.requests:
        assert request.peer_certificate is not None
        assert "press-07@example.com" in str(request.peer_certificate["subjectAltName"])


def test_client_certificates_that_cannot_be_used(site: Site, tmp_path: Path) -> None:
    other = trustme.CA().issue_cert("x@example.com")
    other.private_key_pem.write_to_path(str(tmp_path / "other.key"))
    (tmp_path / "other.key").chmod(0o600)
    for certificate, key in [
        (site.client_cert, tmp_path / "missing"),
        (tmp_path / "missing", site.client_key),
        (site.client_cert, tmp_path / "other.key"),
        (site.ca_file, site.ca_file),
    ]:
        with pytest.raises(TransportError, match="client_cert") as caught:
            Network(None, certificate, key).check("https://airflow.example")
        assert "\n" not in str(caught.value)
    site.client_key.chmod(0o644)
    with pytest.raises(TransportError, match="chmod o="):
        Network(None, site.client_cert, site.client_key).check("https://airflow.example")


@pytest.mark.parametrize("value", ["socks5://127.0.0.1:1080", "http://", "http://host:port", "ftp://x:1"])
def test_proxies_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ALL_PROXY", value)
    with pytest.raises(TransportError, match="ALL_PROXY: is no address of an HTTP proxy"):
        Network().check("http://airflow.example")


def test_which_proxy_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxy_for("https://a.example") is None
    monkeypatch.setenv("ALL_PROXY", "proxy:1")
    assert proxy_for("https://a.example") == "http://proxy:1"
    monkeypatch.setenv("HTTPS_PROXY", "https://proxy:2")
    assert proxy_for("https://a.example") == "https://proxy:2"
    assert proxy_for("http://a.example") == "http://proxy:1"
    monkeypatch.setenv("NO_PROXY", "b.example, .c.example, d.example:8443")
    assert proxy_for("https://a.b.example") is None
    assert proxy_for("https://x.c.example") is None
    assert proxy_for("https://d.example:8443") is None
    assert proxy_for("https://d.example") == "https://proxy:2"


async def fault(kind: Carrier, url: str, network: Network) -> str:
    with pytest.raises(TransportError) as caught:
        await talk(kind, url, network)
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_a_server_with_nothing_newer_than_tls_1_1(carrier: Carrier, site: Site) -> None:
    old = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    old.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    site.authority.issue_cert("127.0.0.1").configure_cert(old)
    spoken: list[object] = []

    def handshakes() -> None:
        # Not by asyncio, which hangs up without sending the alert that other servers send.
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    spoken.append(old.wrap_socket(connection, server_side=True).version())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=handshakes)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        try:
            text = await fault(carrier, url, Network(ca_file=site.ca_file))
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            await asyncio.to_thread(thread.join)
    assert "1.2 or newer" in text
    assert spoken == []


def test_whatever_the_system_allows_it_is_at_least_tls_1_2(site: Site) -> None:
    tls = Network(ca_file=site.ca_file).tls
    assert tls.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert (tls.verify_mode, tls.check_hostname) == (ssl.CERT_REQUIRED, True)


async def test_a_pinned_certificate(carrier: Carrier, site: Site) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate = site.authority.issue_cert("127.0.0.1")
    certificate.configure_cert(tls)
    der = ssl.PEM_cert_to_DER_cert(certificate.cert_chain_pems[0].bytes().decode())
    pin = hashlib.sha256(der).hexdigest()
    async with serve(site, tls) as port:
        url = f"https://127.0.0.1:{port}"
        await talk(carrier, url, Network(ca_file=site.ca_file, pins=frozenset({"0" * 64, pin})))
        told = len(site.requests)
        text = await fault(carrier, url, Network(ca_file=site.ca_file, pins=frozenset({"0" * 64})))
        assert "none of those that are pinned" in text
        assert pin in text
        # A pin does not make a certificate trusted.
        assert "not trusted" in await fault(carrier, url, Network(pins=frozenset({pin})))
    assert len(site.requests) == told, "nothing was said to it"
