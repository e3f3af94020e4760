"""The file from which systemd takes the runner's environment. That systemd reads it so is tested with systemd."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from airflow_edge_agent.adapters.environment_file import (
    RUNNER_ENVIRONMENT,
    environment_file,
    write_environment_file,
)


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
