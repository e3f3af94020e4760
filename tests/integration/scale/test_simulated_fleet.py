"""The simulator of the fleet, in small: whoever measures with it must be able to trust it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fleet.__main__ import measure, parser
from fleet.gauge import quantile, slope_per_hour

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration


def test_a_small_fleet_works_without_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet.__main__.RESULTS", tmp_path / "fleet")
    arguments = parser().parse_args(
        ["-n", "50", "--scenarios", "steady,burst", "--seconds", "4", "--rate", "10", "--jobs", "200", "--seed", "7"]
    )
    figures = measure(arguments)
    assert figures["errors"] == 0, figures["error_samples"]
    assert figures["logged_errors"] == []
    assert figures["steady_jobs"] == 40
    assert figures["burst_left"] == figures["burst_failed"] == 0
    assert figures["burst_jobs_per_second"] > 0


def test_slopes_and_quantiles() -> None:
    assert slope_per_hour([(0.0, 5.0), (1.0, 6.0), (2.0, 7.0)]) == pytest.approx(3_600)
    assert slope_per_hour([(0.0, 5.0), (10.0, 5.0)]) == 0
    assert slope_per_hour([(3.0, 5.0)]) == 0
    assert quantile([3, 1, 2], 0.5) == 2
    assert quantile(list(range(100)), 0.95) == 95
