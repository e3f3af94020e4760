"""The file from which systemd takes the runner's environment. That systemd reads it so is tested with systemd."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from airflow_edge_agent.adapters.environment_file import (
    RUNNER_ENVIRONMENT,
    configure_foreign_runner,
    environment_file,
    write_environment_file,
)
from airflow_edge_agent.settings import Settings


def test_values_are_quoted() -> None:
    text = environment_file({"B": 'say "hi"', "A": "plain", "C": "a\\b $HOME `id`"})
    assert text.splitlines()[1:] == ['A="plain"', 'B="say \\"hi\\""', 'C="a\\\\b \\$HOME \\`id\\`"']


def test_what_depends_on_the_user_is_left_to_systemd() -> None:
    assert "HOME" not in environment_file({"HOME": "/var/lib/airflow-edge-agent", "USER": "edge-agent"})


def test_a_control_character_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="variable BELL"):
        environment_file({"BELL": "\a"})


def test_the_file_is_for_us_alone(tmp_path: Path) -> None:
    write_environment_file(tmp_path, {"SECRET": "x"})
    assert stat.S_IMODE((tmp_path / RUNNER_ENVIRONMENT).stat().st_mode) == 0o600


def settings(tmp_path: Path, **runner: object) -> Settings:
    return Settings.model_validate(
        {
            "server_url": "https://airflow.example.com",
            "state_dir": str(tmp_path),
            "runtime_dir": str(tmp_path),
            "bundles": {"plant": {"path": "/srv/dags"}},
            "runner": {"python": "/opt/rt/bin/python", "idle_seconds": 60, **runner},
        }
    )


def test_a_runner_that_systemd_starts_is_configured_by_it(tmp_path: Path) -> None:
    assert configure_foreign_runner(settings(tmp_path, socket="/run/edge-runner/runner.sock")) is None
    text = (tmp_path / RUNNER_ENVIRONMENT).read_text()
    assert 'EDGE_RUNNER_PYTHON="/opt/rt/bin/python"' in text
    assert 'EDGE_RUNNER_IDLE_SECONDS="60"' in text
    assert "/srv/dags" in text


def test_one_that_the_daemon_starts_needs_no_file(tmp_path: Path) -> None:
    assert configure_foreign_runner(settings(tmp_path)) is None
    assert not (tmp_path / RUNNER_ENVIRONMENT).exists()


def test_what_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    socket = "/run/edge-runner/runner.sock"
    fault = configure_foreign_runner(settings(tmp_path, socket=socket, env={"BELL": "\a"}))
    assert fault is not None
    assert "variable BELL" in fault
    (tmp_path / RUNNER_ENVIRONMENT).mkdir()
    fault = configure_foreign_runner(settings(tmp_path, socket=socket))
    assert fault is not None
    assert "runner.env: cannot be written (Is a directory)" in fault
    assert "\n" not in fault
