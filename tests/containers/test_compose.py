"""compose.yaml, read by an implementation of the Compose specification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from compose_spec import PyCompose, PyOptions

from containers.reading import settings_of

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "packaging/compose/compose.yaml").read_text()


def services() -> dict[str, dict[str, Any]]:
    options = PyOptions()
    options.apply_merge = True
    compose = options.from_yaml(TEXT)
    compose.validate()
    found: dict[str, dict[str, Any]] = compose.to_dict()["services"]
    return found


def test_it_is_what_the_specification_knows() -> None:
    assert set(services()) == {"postgres", "tables", "airflow", "scheduler", "dag-processor", "edge-agent"}


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("stop_grace_period: 10m", "stop_grace_period: ten minutes"),
        ("restart: unless-stopped", "restart: sometimes"),
        ("condition: service_healthy", "condition: service_cheerful"),
    ],
)
def test_the_check_notices_what_is_wrong(right: str, wrong: str) -> None:
    assert right in TEXT
    with pytest.raises(ValueError, match=r"."):
        PyCompose.from_yaml(TEXT.replace(right, wrong))


def test_everything_that_is_named_is_there() -> None:
    found = services()
    for name, service in found.items():
        assert set(service.get("depends_on", ())) <= set(found), name
        if "build" in service:
            context = ROOT / "packaging/compose" / service["build"]["context"]
            assert (context / service["build"]["dockerfile"]).is_file(), name
    made = (ROOT / "packaging/compose/secrets.sh").read_text()
    for path in ("secrets/airflow.env", "secrets/postgres.env", "secrets/join-token"):
        assert path in TEXT
        assert path in made


def test_the_agent_takes_its_variables() -> None:
    agent = services()["edge-agent"]
    settings = settings_of(agent["environment"])
    assert settings.server_url == "http://airflow:8080"
    assert settings.bundles["site"].path == Path("/srv/dags")
    assert agent["stop_grace_period"] == "10m"
    assert 0 < settings.drain.deadline_seconds < 600
