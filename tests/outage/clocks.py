"""How long everything takes that has to do with an outage: Airflow's own times, and ours."""

from __future__ import annotations

from dataclasses import dataclass

FULL_MINUTES = 30.0
"""The partition in which all clocks are those of a stock Airflow."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """Every clock, at full length multiplied by ``scale``, but no shorter than what a busy machine keeps up with.

    :param partition_seconds: how long the link is cut.
    :param scale: 1: Airflow's defaults.
    :param token_seconds: how long an execution token of Airflow lives, if not as long as ``scale`` says.
    """

    partition_seconds: float
    scale: float
    token_seconds: float | None = None

    def _scaled(self, seconds: float, at_least: float) -> float:
        return seconds if self.scale == 1 else max(seconds * self.scale, at_least)

    @property
    def token_life_seconds(self) -> float:
        """How long an execution token lives; Airflow renews it in the last fifth, and only if a call comes through."""
        return self._scaled(600, 10) if self.token_seconds is None else self.token_seconds

    @property
    def heartbeat_timeout_seconds(self) -> float:
        """After which time without heartbeat the scheduler fails a task.

        The server sends heartbeats for a task once its agent has been silent for a heartbeat and ten seconds, and looks
        every five.
        """
        return self._scaled(300, 25)

    @property
    def retry_delay_seconds(self) -> float:
        """How long Airflow waits before the second try."""
        return self._scaled(300, 2)

    @property
    def agent_timeout_seconds(self) -> float:
        """After which time an agent counts as away: what the lease leaves beyond the partition, to come back in."""
        return self._scaled(75, 20)

    @property
    def lease_seconds(self) -> float:
        """The disconnect lease: the default, or no longer than the partition is."""
        return max(1_800.0, self.partition_seconds) if self.scale == 1 else self.partition_seconds

    @property
    def line_seconds(self) -> float:
        """How long a task waits between two lines of its log."""
        return self._scaled(5, 0.5)

    def airflow(self) -> dict[str, str]:
        """Return the settings of a central Airflow, whatever runs its tasks."""
        return {
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": _whole(self.heartbeat_timeout_seconds),
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": f"{self._scaled(10, 1):g}",
            "AIRFLOW__EXECUTION_API__JWT_EXPIRATION_TIME": _whole(self.token_life_seconds),
            "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": _whole(self.retry_delay_seconds),
        }

    def ours(self) -> dict[str, str]:
        """Return the settings of our own part of Airflow."""
        return {
            "AIRFLOW__EDGE_AGENT__HEARTBEAT_INTERVAL": f"{self._scaled(25, 1):g}",
            "AIRFLOW__EDGE_AGENT__AGENT_TIMEOUT": f"{self.agent_timeout_seconds:g}",
            "AIRFLOW__EDGE_AGENT__DISCONNECT_GRACE": f"{self._scaled(300, 20):g}",
            "AIRFLOW__EDGE_AGENT__DISCONNECT_LEASE": f"{self.lease_seconds:g}",
        }

    def worker(self) -> dict[str, str]:
        """Return the settings of an edge3 worker and of its tasks."""
        return {
            "AIRFLOW__EDGE__HEARTBEAT_INTERVAL": _whole(self._scaled(30, 1)),
            "AIRFLOW__EDGE__JOB_POLL_INTERVAL": _whole(self._scaled(5, 1)),
            "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": _whole(self._scaled(5, 1)),
            "AIRFLOW__WORKERS__EXECUTION_API_RETRY_WAIT_MIN": f"{self._scaled(1, 0.05):g}",
            "AIRFLOW__WORKERS__EXECUTION_API_RETRY_WAIT_MAX": f"{self._scaled(90, 3):g}",
            "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": f"{self._scaled(5, 1):g}",
        }


def _whole(seconds: float) -> str:
    return str(max(1, round(seconds)))
