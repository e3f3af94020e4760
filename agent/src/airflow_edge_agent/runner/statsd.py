"""Leads what a task tells to Airflow's metrics to the agent, unless the operator has other plans for it."""

from __future__ import annotations

import importlib
import os
from typing import Any

OWN = ("STATSD_ON", "STATSD_DATADOG_ENABLED", "OTEL_ON")
"""Options of ``[metrics]`` by which an operator has decided where metrics of tasks go, or that they go nowhere."""

_PREFIX = "AIRFLOW__METRICS__"


def lead_to(port: int) -> None:
    """Configure StatsD for this process and what it starts, if nothing is configured.

    :param port: where the agent listens, on the loopback address.
    """
    if any(_PREFIX + name in os.environ for name in OWN) or _configured():
        return
    settings = {
        "STATSD_ON": "True",
        "STATSD_HOST": "127.0.0.1",
        "STATSD_PORT": str(port),
        "STATSD_IPV6": "False",
        # The centre puts its own before the names, and tells them under old names, too, if it is set to.
        "STATSD_PREFIX": "",
        "LEGACY_NAMES_ON": "False",
        # So that tags come along.
        "STATSD_INFLUXDB_ENABLED": "True",
    }
    os.environ.update({_PREFIX + name: value for name, value in settings.items()})


def _configured() -> bool:
    """Tell whether a file of Airflow's configuration says where metrics go."""
    try:
        conf: Any = importlib.import_module("airflow.sdk.configuration").conf
        return any(conf.getboolean("metrics", name.lower(), fallback=False) for name in OWN)
    except Exception:  # noqa: BLE001 -- whatever an SDK or its configuration is like: the task finds it again
        return False
