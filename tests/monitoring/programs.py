"""Prometheus itself, its checker of rules, and what takes OpenTelemetry's metrics for it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from harness.ports import reserve_port
from harness.processes import Keeper, Managed
from harness.waiting import wait_until

PROJECT = Path(__file__).parents[2]
PROGRAMS = Path(os.environ.get("EDGE_TEST_PROMETHEUS", PROJECT / ".compat" / "prometheus" / "usr" / "bin"))
MONITORING = PROJECT / "docs" / "monitoring"
ALERTS = MONITORING / "alerts.yaml"
DASHBOARD = MONITORING / "dashboard.json"

START_SECONDS = 60


def program(name: str) -> Path:
    """Return one of Prometheus' programs. Its absence is a failure: ``make test-monitoring`` fetches them."""
    found = PROGRAMS / name
    if not found.is_file():
        pytest.fail(f"{found} is missing: run these tests with 'make test-monitoring'")
    return found


def promtool(*arguments: str | Path) -> str:
    """Run it and return what it says; fail if it is not content."""
    done = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, check=False, timeout=60)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


class _Server:
    """A program that listens for HTTP on a port of its own, from entering to leaving."""

    def __init__(self, name: str, folder: Path, keeper: Keeper) -> None:
        self._name = name
        self._folder = folder
        self._keeper = keeper
        self._process: Managed | None = None
        self.address = f"127.0.0.1:{reserve_port()}"
        self.url = f"http://{self.address}"
        self._client = httpx.Client(base_url=self.url, timeout=30, trust_env=False)
        folder.mkdir(parents=True)

    def __enter__(self) -> Self:
        log = self._folder / "log"
        argv: list[str | Path] = [program(self._name), *self._options()]
        self._process = self._keeper.spawn(self._name, argv, env={}, cwd=self._folder, log=log)
        wait_until(self._is_ready, seconds=START_SECONDS, what=f"{self._name} to start", seen=log.read_text)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        if self._process is not None:
            self._process.stop()

    def _options(self) -> list[str]:
        raise NotImplementedError

    def _is_ready(self) -> bool:
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False


class Receiver(_Server):
    """VictoriaMetrics, which takes what OpenTelemetry sends, and gives it Prometheus' names."""

    def __init__(self, folder: Path, keeper: Keeper) -> None:
        super().__init__("victoria-metrics", folder, keeper)
        self.endpoint = f"{self.url}/opentelemetry/v1/metrics"
        """Where OpenTelemetry's exporter has to send metrics to."""

    def _options(self) -> list[str]:
        return [
            f"-storageDataPath={self._folder / 'data'}",
            f"-httpListenAddr={self.address}",
            "-opentelemetry.usePrometheusNaming",
            # What has arrived is to be seen at once.
            "-search.latencyOffset=0s",
            "-inmemoryDataFlushInterval=1s",
        ]


class Prometheus(_Server):
    """Prometheus with our rules, which asks the receiver for Airflow's metrics and agents for theirs.

    :param agents: addresses of agents' metrics, as host and port.
    """

    def __init__(self, folder: Path, keeper: Keeper, receiver: Receiver, agents: Sequence[str]) -> None:
        super().__init__("prometheus", folder, keeper)
        document = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(ALERTS)],
            "scrape_configs": [
                {"job_name": "edge-agents", "static_configs": [{"targets": list(agents)}]},
                {
                    "job_name": "airflow",
                    "metrics_path": "/federate",
                    "params": {"match[]": ['{__name__=~"airflow_.*"}']},
                    "honor_labels": True,
                    "static_configs": [{"targets": [receiver.address]}],
                },
            ],
        }
        self._config = folder / "prometheus.yml"
        # JSON is YAML.
        self._config.write_text(json.dumps(document))

    def _options(self) -> list[str]:
        return [
            f"--config.file={self._config}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address={self.address}",
        ]

    def query(self, expression: str) -> list[Mapping[str, Any]]:
        """Return what an expression gives now, as series with labels and a value.

        :raises AssertionError: when Prometheus does not understand it.
        """
        found: list[Mapping[str, Any]] = self._get("query", query=expression)["result"]
        return found

    def label_values(self, label: str, selector: str) -> list[str]:
        """Return the values of a label, as the variables of a dashboard are asked for."""
        found: list[str] = self._get(f"label/{label}/values", **{"match[]": selector})
        return found

    def rules(self) -> list[Mapping[str, Any]]:
        """Return the alert rules, with how their evaluation went and what they found."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def kinds(self) -> dict[str, str]:
        """Return the kind of each scraped metric."""
        return {name: entries[0]["type"] for name, entries in self._get("metadata").items()}

    def _get(self, path: str, **parameters: str) -> Any:
        answer = self._client.get(f"/api/v1/{path}", params=parameters)
        assert answer.status_code == 200, f"{path} {parameters}: {answer.text}"
        return answer.json()["data"]
