"""Has the agent itself read what a container is given."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from airflow_edge_agent.configuration import load_settings
from airflow_edge_agent.settings import Settings


def settings_of(variables: Mapping[str, object]) -> Settings:
    """Return the settings that an agent with these variables, and nothing else, has."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, str(value))
        # As the file in the package: there, and without any setting.
        return load_settings(Path(os.devnull), {})
