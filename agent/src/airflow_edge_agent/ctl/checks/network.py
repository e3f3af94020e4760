"""Between this machine and the server: name, connection, TLS, proxies, clock, credential, carrier."""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx

from airflow_edge_agent.adapters.credential import CredentialError, Prover, read_credential
from airflow_edge_agent.adapters.keys import KeyFault
from airflow_edge_agent.adapters.network import Network, proxy_for
from airflow_edge_agent.adapters.runtime_env import PROXIES
from airflow_edge_agent.ctl.doctor import Check, Scene, Verdict
from airflow_edge_agent.operations import network_of
from airflow_edge_agent.ports import TransportError
from airflow_edge_agent.runtime.logging import redact

SECONDS = 10.0
SKEW_WARN_SECONDS = 5.0
SKEW_FAIL_SECONDS = 60.0
EXPIRY_WARN_DAYS = 14


def _network(scene: Scene) -> Network:
    settings = scene.loaded.settings
    return network_of(settings)


def enrolment(scene: Scene) -> Iterator[Check]:
    """Look whether a server is known."""
    if not scene.loaded.enrolled:
        yield Check("server", "fail", "none is configured", "edgectl enroll https://...")


def dns(scene: Scene) -> Iterator[Check]:
    """Look whether the name resolves and something listens there."""
    if not scene.loaded.enrolled:
        return
    url = scene.loaded.settings.server_url
    try:
        proxy = proxy_for(url)
    except TransportError as error:
        yield Check("proxy", "fail", str(error), "mend the variable that is named")
        return
    scene.shared["proxy"] = proxy
    target = urlsplit(proxy or url)
    what = "proxy" if proxy else "server"
    port = target.port or (443 if target.scheme == "https" else 80)
    host = target.hostname or ""
    try:
        addresses = sorted({str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)})
    except OSError as error:
        yield Check(
            "DNS", "fail", f"{what} {host}: {error.strerror or error}", "is the name right? resolvectl query NAME"
        )
        return
    yield Check("DNS", "ok", f"{what} {host} is {', '.join(addresses)}")
    begun = time.monotonic()
    try:
        with socket.create_connection((host, port), timeout=SECONDS):
            took = time.monotonic() - begun
    except OSError as error:
        yield Check("TCP", "fail", f"{host} port {port}: {error.strerror or error}",
                    "is the server running, does a firewall block the way out?")  # fmt: skip
        return
    scene.shared["reachable"] = True
    yield Check("TCP", "ok", f"{what} {host} port {port}, {took * 1000:.0f} ms")


def tls(scene: Scene) -> Iterator[Check]:
    """Look whether the certificate is good, for how long, and whose it is."""
    parts = urlsplit(scene.loaded.settings.server_url)
    if not scene.loaded.enrolled or not scene.shared.get("reachable"):
        return
    if parts.scheme != "https":
        yield Check("TLS", "warn", "not used: what is said can be read on the way", "use https in server_url")
        return
    if scene.shared.get("proxy"):
        yield Check("TLS", "skip", "through a proxy; the check of the agent API below goes that way")
        return
    host, port = parts.hostname or "", parts.port or 443
    try:
        context = _network(scene).tls
        name = scene.loaded.settings.tls_server_name or host
        with (
            socket.create_connection((host, port), timeout=SECONDS) as connection,
            _plain_context(context, scene).wrap_socket(connection, server_hostname=name) as secured,
        ):
            certificate = secured.getpeercert() or {}
    except TransportError as error:
        yield Check("TLS", "fail", str(error), "mend the file that is named")
        return
    except ssl.SSLCertVerificationError as error:
        issuer = _issuer_untrusted(host, port)
        yield Check("TLS", "fail", f"{error.verify_message}; issued by {issuer}",
                    "if that is a company's inspecting proxy or an own CA: put its certificate into ca_file; "
                    "else check the clock and the name in server_url")  # fmt: skip
        return
    except OSError as error:
        yield Check("TLS", "fail", str(error), "does this port speak TLS?")
        return
    expires = ssl.cert_time_to_seconds(str(certificate.get("notAfter")))
    days = (expires - time.time()) / 86_400
    issuer = _name(certificate.get("issuer", ()))
    verdict: Verdict = "warn" if days < EXPIRY_WARN_DAYS else "ok"
    remedy = "renew the server's certificate" if verdict == "warn" else None
    yield Check("TLS", verdict, f"trusted, issued by {issuer}, valid for {days:.0f} days", remedy)


def _plain_context(context: ssl.SSLContext, scene: Scene) -> ssl.SSLContext:
    """Return a context for sockets; the agent's own is for connections without one."""
    own = ssl.create_default_context(cafile=scene.loaded.settings.ca_file and str(scene.loaded.settings.ca_file))
    own.check_hostname = context.check_hostname
    settings = scene.loaded.settings
    if settings.client_cert is not None:
        own.load_cert_chain(settings.client_cert, settings.client_key, password="")
    return own


def _issuer_untrusted(host: str, port: int) -> str:
    """Say who has issued a certificate that is not trusted; nothing is sent over that connection."""
    try:
        pem = ssl.get_server_certificate((host, port), timeout=SECONDS)
        from tempfile import NamedTemporaryFile  # noqa: PLC0415 -- only here

        with NamedTemporaryFile("w", suffix=".pem") as file:
            file.write(pem)
            file.flush()
            # The standard library reads certificates only from files.
            decoded = ssl._ssl._test_decode_cert(file.name)  # type: ignore[attr-defined]  # noqa: SLF001
        return _name(decoded.get("issuer", ()))
    except (OSError, ValueError, AttributeError):
        return "unknown"


def _name(parts: object) -> str:
    names = {key: value for part in parts for key, value in part} if isinstance(parts, tuple) else {}
    return str(names.get("commonName") or names.get("organizationName") or "unknown")


def proxies(scene: Scene) -> Iterator[Check]:
    """Look for a proxy in this shell that the daemon does not know."""
    here = {name: redact(os.environ[name]) for name in (*PROXIES, "ALL_PROXY") if os.environ.get(name)}
    if scene.facts is None:
        if here:
            yield Check("proxy", "warn", f"this shell sets {', '.join(here)}; whether the unit does cannot be asked",
                        "put them into /etc/default/edge-agent")  # fmt: skip
        return
    there = scene.facts["proxies"]
    missing = sorted(name for name, value in here.items() if there.get(name) != value)
    if missing:
        yield Check("proxy", "warn", f"this shell sets {', '.join(missing)}, the agent's unit does not, or otherwise",
                    "if the agent needs them: put them into /etc/default/edge-agent and restart it")  # fmt: skip
    else:
        yield Check(
            "proxy", "ok", f"the agent uses {', '.join(sorted(there))}" if there else "none, neither here nor there"
        )


def api(scene: Scene) -> Iterator[Check]:
    """Look whether the agent API is there, the credential good and the clock right."""
    if not scene.shared.get("reachable"):
        return
    settings = scene.loaded.settings
    url = f"{settings.server_url}/edge-agents/v1/exchange"
    try:
        prover = Prover(read_credential(settings.credential_file), settings.credential_file)
        header = prover.header()
    except (CredentialError, KeyFault) as error:
        unreadable: Verdict = "skip" if scene.shared.get("limited") and "Permission" in str(error) else "fail"
        yield Check(
            "credential", unreadable, str(error), "run doctor as root" if unreadable == "skip" else "edgectl enroll"
        )
        return
    try:
        proxy = scene.shared.get("proxy")
        with httpx.Client(verify=_network(scene).tls, proxy=proxy, trust_env=False, timeout=SECONDS) as client:
            # No frames and no session: answered, and changes nothing.
            answer = client.post(url, headers={"authorization": header}, json={"frames": []})
            if prover.was_late(answer.headers.get("www-authenticate")):
                # The check of the clock has more to say about that.
                answer = client.post(url, headers={"authorization": prover.header()}, json={"frames": []})
    except (httpx.HTTPError, TransportError, OSError) as error:
        yield Check("agent API", "fail", f"{url}: {type(error).__name__}: {error}", "see the checks above")
        return
    moment = answer.headers.get("date")
    if answer.status_code in (401, 403):
        yield Check(
            "credential", "fail", "the server refuses it", "make a join token on the server, run edgectl enroll"
        )
    elif answer.status_code == 404:  # noqa: PLR2004 -- HTTP's own numbers
        yield Check("agent API", "fail", f"{url}: not there",
                    "install airflow-edge-server on the server, set [edge_agent] api_enabled = True")  # fmt: skip
        return
    elif answer.is_success:
        yield Check("credential", "ok", "the server takes it")
    else:
        yield Check("agent API", "fail", f"{url}: HTTP {answer.status_code}", "the server's log says why")
    yield from _clock(scene, moment)


def _clock(scene: Scene, moment: str | None) -> Iterator[Check]:
    skew = scene.facts.get("skew_seconds") if scene.facts is not None else None
    if moment is not None:
        skew = (datetime.now(UTC) - parsedate_to_datetime(moment)).total_seconds()
    if skew is None:
        return
    words = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the server's"
    remedy = "set up time synchronisation (timedatectl set-ntp true); tasks' tokens depend on it"
    if abs(skew) > SKEW_FAIL_SECONDS:
        yield Check("clock", "fail", words, remedy)
    elif abs(skew) > SKEW_WARN_SECONDS:
        yield Check("clock", "warn", words, remedy)
    else:
        yield Check("clock", "ok", "agrees with the server's")


def carrier(scene: Scene) -> Iterator[Check]:
    """Look over what the daemon speaks."""
    if not scene.status.get("connected"):
        return
    used, wanted = scene.status["carrier"], scene.loaded.settings.carrier
    if used == "http" and wanted == "auto":
        yield Check("carrier", "warn", "the HTTP exchange: WebSockets do not come through",
                    'let proxies pass Upgrade: websocket below /edge-agents, or set carrier = "http"')  # fmt: skip
    else:
        yield Check("carrier", "ok", str(used))


def queues(scene: Scene) -> Iterator[Check]:
    """Look for what the credential is good for: as whom, and for which queues, as the server has told the daemon."""
    if scene.facts is None or not scene.loaded.enrolled:
        return
    name, asked = str(scene.status["name"]), ", ".join(scene.status["queues"])
    # A server that grants no queues one by one tells of none.
    refused = scene.status.get("refused_queues") or []
    if not scene.status["connected"]:
        yield Check("queues", "skip", f"{name} wants {asked}; what it may serve, the server says when it is connected")
    elif refused:
        yield Check("queues", "warn", f"the server does not let {name} serve {', '.join(refused)}",
                    "take them out of queues, or have them granted at the server")  # fmt: skip
    else:
        yield Check("queues", "ok", f"the credential is {name}'s; it serves {asked}")


def timeouts(scene: Scene) -> Iterator[Check]:
    """Look whether the times of agent, server and service manager fit together."""
    if scene.facts is None:
        return
    beat, dog = scene.facts["heartbeat_seconds"], scene.facts["watchdog_seconds"]
    drain = scene.loaded.settings.drain
    if dog is not None and dog < 10:  # noqa: PLR2004 -- seconds; a busy small machine needs them
        yield Check("time-outs", "warn", f"WatchdogSec is {dog:g} s", "set it to 60 s or so")
    elif 0 < drain.deadline_seconds < drain.kill_grace_seconds:
        yield Check("time-outs", "warn", "drain.deadline_seconds is shorter than drain.kill_grace_seconds",
                    "raise the one or lower the other")  # fmt: skip
    elif beat > 60:  # noqa: PLR2004 -- what proxies commonly allow
        yield Check("time-outs", "warn", f"the server wants a heartbeat every {beat:g} s; proxies cut quiet lines "
                    "after 60 s", "lower [edge_agent] heartbeat_interval on the server")  # fmt: skip
    else:
        yield Check("time-outs", "ok", f"heartbeat {beat:g} s, watchdog {f'{dog:g} s' if dog else 'none'}")


CHECKS = (enrolment, dns, tls, proxies, api, queues, carrier, timeouts)
