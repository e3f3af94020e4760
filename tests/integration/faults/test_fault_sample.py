"""A sample of the fault suite, so that every change meets it. All of it: ``make test-faults``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from faults.catalogue import FAULTS
from faults.run import run_fault
from faults.world import World

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

SAMPLE = (
    ("cut-before-frame-down", 1, "relay"),
    ("cut-after-frame-up", 2, "relay"),
    ("repeat", 1, "relay"),
    ("reorder", 1, "relay"),
    ("agent-kill", 1, "relay"),
    ("agent-kill", 1, "direct"),
    ("api-server-kill", 1, "relay"),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    # Generous, because other tests may be running beside it.
    with World(tmp_path_factory.mktemp("faults"), scale=2) as world:
        yield world


@pytest.mark.parametrize(("fault", "seed", "way"), SAMPLE)
def test_nothing_is_lost_doubled_or_leaked(world: World, fault: str, seed: int, way: str) -> None:
    world.execution_api = way
    outcome = run_fault(world, FAULTS[fault], seed)
    assert outcome.findings.lines() == []
    assert outcome.recovered_seconds is not None
