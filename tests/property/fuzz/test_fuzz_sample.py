"""A little of ``make fuzz``, which runs a million frames."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fuzz.admin import run_admin
from fuzz.door import Door
from fuzz.material import Thought
from fuzz.run import Target, run
from fuzz.targets import Agent, Codec, Server
from fuzz.tasks import Statsd


@pytest.mark.parametrize(("make", "frames"), [(Codec, 6_000), (Server, 4_000), (Agent, 4_000), (Door, 3_000)])
def test_nonsense_is_refused_and_does_no_harm(make: Callable[[], Target], frames: int) -> None:
    total = run(make(), frames, seed_number=20_261_124)
    assert total.findings == {}
    assert total.frames >= frames
    assert len(total.seen) > 5, "some of it is understood"


def test_nonsense_told_to_statsd_makes_frames_that_the_server_takes() -> None:
    total = run(Statsd(), 20_000, seed_number=20_261_124)
    assert total.findings == {}
    assert {"counter", "gauge", "timing", "dropped"} <= set(total.seen)


def test_requests_by_the_admin_apis_own_document_meet_no_fault() -> None:
    total = run_admin(108, seed_number=20_261_124)
    assert total.findings == {}
    assert {"200", "422"} <= set(total.seen)


def test_a_finding_is_told_with_its_seed() -> None:
    class Fragile(Codec):
        async def take(self, thought: Thought) -> int:
            raise KeyError("x")

    total = run(Fragile(), 10, seed_number=1)
    ((name, text),) = total.findings.items()
    assert "KeyError" in name
    assert text.startswith("seed ")
