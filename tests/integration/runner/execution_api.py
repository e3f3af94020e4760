"""The few calls of Airflow's Execution API that a task makes, with faults on demand. For tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NOW = "2026-01-01T00:00:00Z"

CONTEXT = {
    "dag_run": {
        "dag_id": "plain",
        "run_id": "r",
        "logical_date": NOW,
        "data_interval_start": NOW,
        "data_interval_end": NOW,
        "run_after": NOW,
        "start_date": NOW,
        "end_date": None,
        "run_type": "manual",
        "state": "running",
        "consumed_asset_events": [],
        "partition_key": None,
    },
    "max_tries": 0,
    "should_retry": False,
}


class ExecutionApi:
    """What the server was asked, and how it is to answer."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/execution/"
        self.faults: dict[tuple[str, str], int | None] = {}
        """Per task instance and call (``run``, ``state``, ``heartbeat``): a status, or ``None`` for hanging up."""
        self.calls: dict[str, list[tuple[str, Any]]] = {}
        """Per task instance: calls and bodies."""
        self.tokens: dict[str, set[str]] = {}

    def states(self, ti_id: str) -> list[str]:
        return [body["state"] for call, body in self.calls.get(ti_id, []) if call == "state"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: ExecutionApi

    def _handle(self) -> None:
        content = self.rfile.read(int(self.headers.get("content-length") or 0))
        parts = self.path.split("?")[0].strip("/").split("/")
        ti_id, call = (parts[2], parts[3]) if parts[1] == "task-instances" and len(parts) > 3 else ("", parts[-1])
        self.api.calls.setdefault(ti_id, []).append((call, json.loads(content) if content else None))
        self.api.tokens.setdefault(ti_id, set()).add(self.headers.get("authorization", ""))
        fault = self.api.faults.get((ti_id, call), 0)
        if fault is None:
            self.close_connection = True
            self.connection.close()
            return
        if fault:
            detail = {"reason": "invalid_state", "message": "no", "previous_state": "success"}
            self._answer(fault, {"detail": detail})
        elif parts[1] == "connection-tests" and call == "connection":
            # A type without a hook here: the test of it fails, and says why.
            self._answer(200, {"conn_id": "scale", "conn_type": "balance", "host": "scale.example", "port": 4001})
        elif call == "run":
            self._answer(200, CONTEXT)
        elif call in ("state", "heartbeat"):
            self._answer(204, None)
        else:
            self._answer(201, "OK")

    do_GET = do_PATCH = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815 -- the names http.server looks for

    def _answer(self, status: int, body: object) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the name in the base class
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        # A client that was killed in the middle of a call is what some tests are about.
        pass


@contextmanager
def execution_api() -> Iterator[ExecutionApi]:
    """Serve on a free port of this host."""
    server = _Server(("127.0.0.1", 0), _Handler)
    api = ExecutionApi(server.server_address[1])
    _Handler.api = api
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
