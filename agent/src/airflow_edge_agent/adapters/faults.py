"""Faults on the way to the server, in one line for the operator. Both carriers speak through these."""

from __future__ import annotations

import contextlib
import socket

from airflow_edge_agent.adapters.credential import is_ours
from airflow_edge_agent.ports import CredentialRefused, Throttled, TransportError

_MAX_RETRY_AFTER_SECONDS = 300.0

PIN_FAULT = "the server's certificate is none of those that are pinned"

_UNAUTHORIZED = 401
_TOO_MANY = 429
_ABSENT = frozenset({404, 405})
_REDIRECTS = range(300, 400)


def credential_refused(url: str) -> CredentialRefused:
    """Say that the server does not know our credential."""
    return CredentialRefused(
        f"{url}: the server refuses this agent's credential: it was revoked, has expired, or was replaced on another "
        "machine; enroll this one again: 'airflow edge-agents enroll --name NAME' on the server, 'edgectl enroll' here"
    )


def status_fault(
    url: str,
    code: int,
    reason: str,
    *,
    location: str | None = None,
    retry_after: str | None = None,
    challenge: str | None = None,
) -> TransportError:
    """Say what a status that was not hoped for means to the operator.

    :param challenge: ``WWW-Authenticate`` of the answer.
    """
    if code == _UNAUTHORIZED and is_ours(challenge):
        return credential_refused(url)
    if code == _UNAUTHORIZED:
        return TransportError(f"{url}: something before the agent API wants a login (401); let agents pass there")
    if code in _ABSENT:
        return TransportError(
            f"{url}: Airflow has no agent API there ({code}); check server_url, and that on the server "
            "airflow-edge-server is installed and [edge_agent] api_enabled is True"
        )
    if code in _REDIRECTS and location is not None:
        return TransportError(f"{url}: redirects to {location[:200]}; set server_url to where Airflow really is")
    words = f"{code} {reason}".strip()
    if code == _TOO_MANY:
        text = f"{url}: the server wants fewer requests or connections ({words}); see its bounds in [edge_agent]"
        error: TransportError = Throttled(text)
    else:
        text = f"{url}: the server answers {words}; see the log of the api-server, or of a proxy before it"
        error = TransportError(text)
    with contextlib.suppress(ValueError):
        after = float(retry_after or "0")
        # In this order "nan" becomes 0.
        error.retry_after_seconds = min(max(0.0, after), _MAX_RETRY_AFTER_SECONDS)
    return error


def not_ours(url: str, reason: str) -> TransportError:
    """Say that what came is not of the agent API."""
    return TransportError(f"{url}: the answer is not the agent API's ({reason}); is a proxy or login page in between?")


def tls_fault(url: str, text: str) -> TransportError | None:
    """Explain an error of the TLS layer by its text; ``None`` if it is none."""
    if PIN_FAULT in text:
        return TransportError(f"{url}: {text}; is something in between, or was the certificate renewed? See tls_pins")
    if "PROTOCOL_VERSION" in text or "UNSUPPORTED_PROTOCOL" in text:
        return TransportError(
            f"{url}: the server, or a proxy before it, speaks no TLS of version 1.2 or newer; upgrade it ({text})"
        )
    if "CERTIFICATE_VERIFY_FAILED" in text:
        reason = text.split("CERTIFICATE_VERIFY_FAILED]", 1)[-1].split(" (_ssl", 1)[0].strip()
        return TransportError(
            f"{url}: the server's TLS certificate is not trusted ({reason}); check the clock, the name in server_url "
            "(or tls_server_name), or give the issuing authority as ca_file"
        )
    if "CERTIFICATE_REQUIRED" in text or "HANDSHAKE_FAILURE" in text:
        return TransportError(
            f"{url}: the server wants a client certificate, or another one ({text}); set client_cert and client_key"
        )
    if "SSL" in text or "TLS" in text:
        return TransportError(f"{url}: no TLS connection ({text}); is server_url's https right for that port?")
    return None


def proxy_fault(url: str, text: str) -> TransportError:
    """Say that a proxy refused us."""
    return TransportError(f"{url}: the proxy does not let us through ({text}); check HTTPS_PROXY and NO_PROXY")


def connect_timeout(url: str) -> TransportError:
    """Say that nobody answers at all."""
    return TransportError(f"{url}: no answer to the connection attempt; check address, routing and firewall")


def connect_fault(url: str, error: BaseException, text: str) -> TransportError:
    """Explain why no connection could be made."""
    if is_name_fault(error):
        return TransportError(f"{url}: the host name cannot be resolved; check server_url and DNS")
    return TransportError(f"{url}: cannot connect ({text}); is the api-server running there?")


def silent(url: str) -> TransportError:
    """Say that the server stopped answering."""
    return TransportError(
        f"{url}: the server stopped answering; is it overloaded, or does a proxy hold its answers back?"
    )


def broken(url: str, text: str) -> TransportError:
    """Say that an established connection broke."""
    return TransportError(f"{url}: the connection broke ({text}); did the server or a proxy restart?")


def is_name_fault(error: BaseException | None) -> bool:
    """Tell whether the host's name could not be resolved; the text of that differs from system to system."""
    while error is not None and not isinstance(error, socket.gaierror):
        error = error.__cause__ or error.__context__
    return error is not None
