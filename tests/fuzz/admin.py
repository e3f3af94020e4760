"""The admin API by its own OpenAPI document: what fits it, and what does not."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.core.result import Ok

from airflow_edge_server.api.hub import Pace
from fuzz.run import FindingError, Total
from fuzz.targets import Faults
from integration.server_api.kit import Database, FakeAgent, add_audit_log, build_app

DOCUMENT = Path(__file__).parents[2] / "docs" / "admin-api.json"
PREFIX = "/v1/admin"


def run_admin(requests: int, *, seed_number: int, tell: Callable[[Total], None] = lambda _: None) -> Total:
    """Send about so many requests, spread over all operations and both kinds of data."""
    seen: Counter[str] = Counter()
    total = Total("admin", seen=seen)
    started = time.monotonic()
    with warnings.catch_warnings(), asyncio.Runner() as runner:
        # The library speaks of its own corner cases, which are none of ours.
        warnings.simplefilter("ignore")
        schema = schemathesis.openapi.from_dict(json.loads(DOCUMENT.read_text()))
        operations = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
        each = max(requests // (2 * len(operations)), 1)
        server = _Server()
        runner.run(server.open())
        try:
            for number, operation in enumerate(operations):
                for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                    with_cases = operation.as_strategy(generation_mode=mode)
                    _try(runner, server, with_cases, count=each, number=seed_number + number, total=total)
                total.seconds = time.monotonic() - started
                tell(total)
        finally:
            runner.run(server.close())
    return total


def _try(runner: asyncio.Runner, server: _Server, cases: Any, *, count: int, number: int, total: Total) -> None:
    @seed(number)
    @settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=[*HealthCheck]
    )
    @given(cases)
    def send(case: Any) -> None:
        what = f"{case.method} {case.path}"
        try:
            total.frames += 1
            total.seen[str(runner.run(server.send(case)))] += 1
        except FindingError as error:
            told = f"seed {number}\n{what}\n{case.as_curl_command()}\n{error}"
            total.findings.setdefault(f"{what}: {error}"[:200], told)

    try:
        send()
    except schemathesis.errors.SchemathesisError:
        total.seen["nothing to be made wrong"] += 1
    except Exception as error:
        if type(error).__name__ not in {"Unsatisfiable", "SkipTest"}:
            raise
        total.seen["nothing to be made wrong"] += 1


class _Server:
    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="edge-agent-fuzz-"))
        self._database = Database(f"sqlite:///{self._folder}/metadata.db")
        self._app = build_app(self._database, pace=Pace(idle_seconds=5, busy_seconds=5))
        self._lifespan = self._app.router.lifespan_context(self._app)
        self._faults = Faults()
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self._app, raise_app_exceptions=False), base_url="http://server", timeout=60
        )

    async def open(self) -> None:
        logger = logging.getLogger("airflow_edge_server")
        logger.addHandler(self._faults)
        logger.propagate = False
        await self._lifespan.__aenter__()
        add_audit_log(self._database)
        agent = FakeAgent(self._client, "press-07", self._database.credential("press-07"))
        await agent.hello()
        self._database.add_job()

    async def close(self) -> None:
        await self._client.aclose()
        await self._lifespan.__aexit__(None, None, None)
        logging.getLogger("airflow_edge_server").removeHandler(self._faults)
        logging.getLogger("airflow_edge_server").propagate = True
        self._database.dispose()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def send(self, case: Any) -> int:
        """Send a case as somebody who may do everything, and return the status."""
        given = case.as_transport_kwargs(base_url=f"http://server{PREFIX}")
        headers = {str(k): str(v) for k, v in dict(given.pop("headers", None) or {}).items()}
        headers = {k: v for k, v in headers.items() if k.isascii() and v.isascii() and v.isprintable()}
        headers |= {"X-Role": "op", "Authorization": "Bearer x"}
        kept = {k: v for k, v in given.items() if k in {"method", "url", "params", "json", "data"} and v is not None}
        if "data" in kept:
            kept["content"] = kept.pop("data")
        if "json" in kept:
            kept["content"] = json.dumps(kept.pop("json")).encode()
            headers["content-type"] = "application/json"
        try:
            response = await self._client.request(**kept, headers=headers)
        except (httpx.InvalidURL, TypeError, UnicodeEncodeError):
            return 0  # nothing that could be sent
        if self._faults.found:
            raise FindingError("the log says: " + self._faults.found.pop())
        if response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise FindingError(f"status {response.status_code}: {response.text[:300]}")
        return response.status_code
