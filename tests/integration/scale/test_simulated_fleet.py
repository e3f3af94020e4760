"""The simulator of the fleet, in small: whoever measures with it must be able to trust it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fleet.__main__ import measure, parser
from fleet.gauge import quantile, slope_per_hour
from fleet.report import ratios, table

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration


def test_a_small_fleet_works_without_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet.__main__.RESULTS", tmp_path / "fleet")
    sizes = ["-n", "50", "--seconds", "4", "--rate", "10", "--jobs", "200", "--tasks", "20", "--seed", "7"]
    figures = measure(parser().parse_args([*sizes, "--scenarios", "steady,burst,storm,scheduler"]))
    assert figures["errors"] == 0, figures["error_samples"]
    assert figures["steady_jobs"] == 40
    assert figures["burst_left"] == figures["burst_failed"] == 0
    assert figures["burst_jobs_per_second"] > 0
    assert figures["storm_agents"] == 50
    assert figures["storm_peak_connections_per_second"] > 0
    assert figures["scheduler_tasks"] == 20
    assert figures["scheduler_failed"] == figures["scheduler_left"] == 0
    assert figures["scheduler_queued_to_running_p50"] > 0


def test_ratios_are_of_what_both_have() -> None:
    ours = {"cores": 0.05, "only_ours": 1, "none_of_theirs": 2, "words": ["x"]}
    theirs = {"cores": 1.0, "only_theirs": 5, "none_of_theirs": 0, "words": ["y"]}
    assert ratios(ours, theirs) == {"cores": pytest.approx(20)}
    assert "20.0" in table(ours, theirs)


def test_slopes_and_quantiles() -> None:
    assert slope_per_hour([(0.0, 5.0), (1.0, 6.0), (2.0, 7.0)]) == pytest.approx(3_600)
    assert slope_per_hour([(0.0, 5.0), (10.0, 5.0)]) == 0
    assert slope_per_hour([(3.0, 5.0)]) == 0
    assert quantile([3, 1, 2], 0.5) == 2
    assert quantile(list(range(100)), 0.95) == 95
