"""The long way that the bench measures over."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator

import httpx
import pytest
import trustme

from bench.slow_link import SlowLink
from fakes.http_server import Reply, Request, serve

ROUND_TRIP_SECONDS = 0.2


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def link(authority: trustme.CA) -> AsyncIterator[SlowLink]:
    async def far(request: Request) -> Reply:
        return Reply(body=request.body)

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(tls)
    async with serve(far) as port:
        with SlowLink(port, ROUND_TRIP_SECONDS, tls) as link:
            yield link


async def test_a_connection_costs_its_handshakes_and_a_call_one_round_trip(
    authority: trustme.CA, link: SlowLink
) -> None:
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    async with httpx.AsyncClient(verify=trust, base_url=link.url, trust_env=False, timeout=30) as client:
        took = []
        for body in (b"first", b"second", b"x" * 1_000_000):
            began = time.monotonic()
            assert (await client.post("/", content=body)).content == body
            took.append(time.monotonic() - began)
    assert took[0] >= 3 * ROUND_TRIP_SECONDS, "TCP, TLS 1.3 and the call itself"
    assert took[1] >= ROUND_TRIP_SECONDS
    assert took[1] < took[0] - ROUND_TRIP_SECONDS
    assert took[2] >= ROUND_TRIP_SECONDS
