"""Receivers of metrics: StatsD over UDP, and OpenTelemetry over HTTP. They keep what they were sent."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

_STATSD_KINDS = {"g": "gauge", "c": "counter", "ms": "timing"}


@dataclass(frozen=True)
class Told:
    """One value of a metric."""

    name: str
    kind: str
    tags: frozenset[tuple[str, str]]
    value: float


class _Receiver:
    def __init__(self) -> None:
        self.told: list[Told] = []
        self.port = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._thread.join(10)

    def last(self, name: str, **tags: str) -> float | None:
        """Return the last value of a metric."""
        wanted = frozenset(tags.items())
        return next((one.value for one in reversed(self.told) if one.name == name and wanted <= one.tags), None)

    def _serve(self) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        raise NotImplementedError


class StatsdReceiver(_Receiver):
    """Takes lines as ``airflow.name,tag=value:1|g``, with tags as InfluxDB writes them."""

    def __init__(self) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]

    def _serve(self) -> None:
        while data := self._socket.recv(65_536):
            for line in data.decode().splitlines():
                name_and_tags, _, rest = line.rpartition(":")
                value, kind = rest.split("|")[:2]
                name, *tags = name_and_tags.split(",")
                pairs = frozenset((tag.partition("=")[0], tag.partition("=")[2]) for tag in tags)
                self.told.append(Told(name, _STATSD_KINDS[kind], pairs, float(value)))

    def _end(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join(10)
        self._socket.close()


class OtelReceiver(_Receiver):
    """Takes what the OTLP exporter posts."""

    def __init__(self) -> None:
        super().__init__()
        self.spans: list[Any] = []
        """Spans, as the protocol has them."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver._take(self.path, self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class calls it so
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]

    def _take(self, path: str, body: bytes) -> None:
        if path.endswith("/traces"):
            from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (  # noqa: PLC0415  Airflow brings it
                ExportTraceServiceRequest,
            )

            traces = ExportTraceServiceRequest.FromString(body)
            self.spans += [s for one in traces.resource_spans for scope in one.scope_spans for s in scope.spans]
            return
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (  # noqa: PLC0415  as above
            ExportMetricsServiceRequest,
        )

        metrics = ExportMetricsServiceRequest.FromString(body)
        for resource in metrics.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    self._metric(metric)

    def _metric(self, metric: Any) -> None:
        shape = metric.WhichOneof("data")
        kind = {"gauge": "gauge", "sum": "counter"}.get(shape, "timing")
        for point in getattr(metric, shape).data_points:
            value = point.sum if kind == "timing" else getattr(point, point.WhichOneof("value"))
            tags = frozenset((tag.key, tag.value.string_value) for tag in point.attributes)
            self.told.append(Told(metric.name, kind, tags, value))

    def _serve(self) -> None:
        self._server.serve_forever()

    def _end(self) -> None:
        self._server.shutdown()
        self._server.server_close()
