"""Which carrier is used when, without any network."""

from __future__ import annotations

import pytest

from airflow_edge_agent.core.carrier import Carrier, CarrierChoice
from airflow_edge_agent.protocol.versions import runtime_mismatch


def test_the_websocket_is_preferred() -> None:
    choice = CarrierChoice("auto")
    assert choice.choose(0) is Carrier.WEBSOCKET
    assert choice.climb_at is None


@pytest.mark.parametrize("policy", ["websocket", "http"])
def test_a_policy_is_kept_whatever_happens(policy: str) -> None:
    choice = CarrierChoice(policy)  # type: ignore[arg-type]  # a literal, parametrized
    choice.impossible(0, 0.5)
    for _ in range(5):
        choice.broke(0, 1, 0.5)
    assert choice.choose(1) == policy
    assert choice.climb_at is None


def test_what_is_impossible_is_tried_again_after_ever_longer_times() -> None:
    choice = CarrierChoice("auto")
    now = 0.0
    waits = []
    for _ in range(8):
        choice.impossible(now, 0.0)
        assert choice.climb_at is not None
        assert choice.choose(choice.climb_at - 0.1) is Carrier.HTTP
        assert choice.choose(choice.climb_at) is Carrier.WEBSOCKET
        waits.append(choice.climb_at - now)
        now = choice.climb_at
    assert waits == [300, 600, 1200, 2400, 3600, 3600, 3600, 3600]


def test_the_times_are_spread() -> None:
    waits = set()
    for chance in (0.0, 0.25, 0.5, 0.99):
        choice = CarrierChoice("auto")
        choice.impossible(0, chance)
        waits.add(choice.climb_at)
    assert len(waits) == 4
    assert all(wait is not None and 300 <= wait <= 600 for wait in waits)


def test_two_short_sessions_in_a_row_make_it_fall_back() -> None:
    choice = CarrierChoice("auto")
    choice.opened()
    choice.broke(0, 59, 0.5)
    assert choice.choose(60) is Carrier.WEBSOCKET
    choice.opened()
    choice.broke(60, 61, 0.5)
    assert choice.choose(62) is Carrier.HTTP


def test_a_long_session_makes_up_for_a_short_one() -> None:
    choice = CarrierChoice("auto")
    for start in range(0, 1_000, 200):
        choice.broke(start, start + 10, 0.5)
        choice.broke(start + 20, start + 81, 0.5)
    assert choice.choose(1_000) is Carrier.WEBSOCKET


def test_a_websocket_that_opens_but_never_holds_is_tried_ever_more_rarely() -> None:
    choice = CarrierChoice("auto")
    now, waits = 0.0, []
    for _ in range(3):
        for _ in range(2):
            choice.opened()
            choice.broke(now, now + 1, 0.0)
            now += 1
        assert choice.climb_at is not None
        waits.append(choice.climb_at - now)
        now = choice.climb_at
    assert waits == [300, 600, 1200]
    choice.opened()
    choice.broke(now, now + 3_600, 0.0)
    choice.impossible(now, 0.0)
    assert choice.climb_at == now + 300


@pytest.mark.parametrize(
    ("sdk", "airflow", "fits"),
    [
        ("1.3.2", "3.3.2", True),
        ("1.3.0", "3.3.9", True),
        ("1.2.1", "3.3.2", False),
        ("1.3.2", "3.2.0", False),
        ("2.0.0", "4.0.0", True),
        ("1.3.0rc1", "3.3.0.dev0", True),
        (None, "3.3.2", True),
        ("", "3.3.2", True),
        ("unknown", "3.3.2", True),
        ("1.3.2", "main", True),
    ],
)
def test_versions_that_fit(sdk: str | None, airflow: str, fits: bool) -> None:  # noqa: FBT001 -- parametrized
    mismatch = runtime_mismatch(task_sdk=sdk, airflow=None, server=airflow)
    assert (mismatch is None) is fits
    if mismatch is not None:
        assert sdk is not None
        assert sdk in mismatch
        assert airflow in mismatch
        assert "\n" not in mismatch


def test_the_airflow_of_a_runtime_says_more_than_its_task_sdk() -> None:
    def told(airflow: str) -> str | None:
        return runtime_mismatch(task_sdk="1.3.2", airflow=airflow, server="3.3.2")

    assert told("3.3.2") is None
    assert told("3.3.1") == "the task runtime has Airflow 3.3.1, the server 3.3.2: another patch"
    assert "another minor version" in str(told("3.2.2"))
    assert "apache-airflow-task-sdk 1.3.*" in str(told("3.2.2"))
    assert told("main") is None
