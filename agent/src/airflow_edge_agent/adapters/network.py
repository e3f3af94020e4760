"""How this machine reaches the server: trust, client certificate, proxies. The same for every carrier."""

from __future__ import annotations

import hashlib
import os
import ssl
import stat
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from airflow_edge_agent.adapters.faults import PIN_FAULT
from airflow_edge_agent.adapters.truststore import trust_the_system
from airflow_edge_agent.ports import TransportError

_PROXY_SCHEMES = ("http", "https")


@dataclass(frozen=True)
class Network:
    """Settings of the way to the server."""

    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    tls_server_name: str | None = None
    pins: frozenset[str] = frozenset()
    """SHA-256 of certificates, in hexadecimal: the server must show one of them. Empty: any that is trusted."""

    @cached_property
    def tls(self) -> ssl.SSLContext:
        """The TLS context of all connections to the server.

        :raises TransportError: one of the files cannot be used.
        """
        context = _ServerContext(ssl.PROTOCOL_TLS_CLIENT)
        # Whatever the system's OpenSSL is configured to put up with.
        context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
        if self.pins:
            context.sslobject_class = _pinned(self.pins)
        context.server_name = self.tls_server_name
        try:
            if self.ca_file is None:
                trust_the_system(context)
            else:
                context.load_verify_locations(cafile=str(self.ca_file))
        except (OSError, ssl.SSLError) as error:
            raise TransportError(f"{self.ca_file}: cannot be used as ca_file: {error}") from None
        if self.client_cert is not None:
            self._load_certificate(context, self.client_cert)
        return context

    def _load_certificate(self, context: ssl.SSLContext, certificate: Path) -> None:
        key = self.client_key or certificate
        try:
            mode = key.stat().st_mode
            # An empty password: without one, OpenSSL would ask on the terminal.
            context.load_cert_chain(certificate, key, password="")
        except (OSError, ssl.SSLError, ValueError) as error:
            raise TransportError(
                f"{certificate} and {key}: cannot be used as client_cert and client_key: {error}; both must be PEM, "
                "fit together, and the key must have no password"
            ) from None
        if mode & stat.S_IRWXO:
            raise TransportError(
                f"{key}: everyone may read this key (mode {stat.S_IMODE(mode):04o}); run: chmod o= {key}"
            )

    def check(self, server_url: str) -> None:
        """Read what is needed for connections to ``server_url``, so that a fault is seen at the start.

        :raises TransportError: a file or a proxy variable cannot be used.
        """
        if urlsplit(server_url).scheme == "https" or self.ca_file is not None or self.client_cert is not None:
            _ = self.tls
        proxy_for(server_url)


class _ServerContext(ssl.SSLContext):
    """Asks for, and verifies, another name than that of the address, if one is set.

    Libraries differ in how they let one say this, and forget it behind proxies: here it holds for all of them.
    """

    server_name: str | None = None

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,  # noqa: FBT001, FBT002 -- the signature of the standard library
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        name = self.server_name or server_hostname
        return super().wrap_bio(incoming, outgoing, server_side, name, session)


def _pinned(pins: frozenset[str]) -> type[ssl.SSLObject]:
    """Return a kind of connection that ends its handshake only with one of these certificates."""

    class Pinned(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            shown = hashlib.sha256(self.getpeercert(binary_form=True) or b"").hexdigest()
            if shown not in pins:
                raise ssl.SSLCertVerificationError(f"{PIN_FAULT} ({shown})")

    return Pinned


def proxy_for(url: str) -> str | None:
    """Return the address of the proxy for ``url`` by the usual variables; ``None``: go there directly.

    ``HTTPS_PROXY``, ``HTTP_PROXY``, else ``ALL_PROXY``; ``NO_PROXY`` excepts hosts. Lower case counts as well.

    :raises TransportError: the variable holds what we cannot use.
    """
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return None  # without loading what reads them
    parts = urlsplit(url)
    host = parts.hostname or ""
    # The standard library's own reading of NO_PROXY, which typeshed does not know.
    bypass: Callable[[str], bool] = urllib.request.proxy_bypass_environment  # type: ignore[attr-defined]
    if bypass(f"{host}:{parts.port}" if parts.port else host):
        return None
    proxies = urllib.request.getproxies_environment()
    kind = parts.scheme if proxies.get(parts.scheme) else "all"
    proxy = proxies.get(kind)
    if not proxy:
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    try:
        address = urlsplit(proxy)
        usable = address.scheme in _PROXY_SCHEMES and bool(address.hostname) and (address.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        name = next((name for name in os.environ if name.lower() == f"{kind}_proxy"), f"{kind}_proxy")
        raise TransportError(f"{name}: is no address of an HTTP proxy; it should look like http://host:port")
    return proxy
