from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from airflow_edge_agent.protocol.enrolment import permitted
from airflow_edge_server.domain.enrolment import (
    Joining,
    Machine,
    enroll_command,
    is_elsewhere,
    is_name_pattern,
    is_rotation_due,
    joining_fault,
    matches,
    name_fault,
    names_one,
)

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("pattern", "name", "good"),
    [
        ("press-07", "press-07", True),
        ("press-07", "press-070", False),
        ("press-07", "press-7", False),
        ("press-*", "press-", True),
        ("press-*", "oven-press-1", False),
        ("press-?", "press-10", False),
        ("*", "anything", True),
        ("a.b", "axb", False),
    ],
)
def test_a_pattern_is_a_name_with_wild_cards(pattern: str, name: str, *, good: bool) -> None:
    assert is_name_pattern(pattern)
    assert matches(pattern, name) is good
    assert names_one(pattern) is not bool(set(pattern) & set("*?"))


@pytest.mark.parametrize("pattern", ["", "a b", "-a", "a/b", "a\n", "[ab]", "a" * 64])
def test_what_is_no_pattern(pattern: str) -> None:
    assert not is_name_pattern(pattern)


def test_a_join_token_ends() -> None:
    assert joining_fault(Joining("a", 1, NOW + DAY, revoked=False), NOW) is None
    assert "revoked" in str(joining_fault(Joining("a", 1, NOW + DAY, revoked=True), NOW))
    assert "expired" in str(joining_fault(Joining("a", 1, NOW, revoked=False), NOW))
    used_up = Joining("a", 0, NOW + DAY, revoked=False)
    assert "as often" in str(joining_fault(used_up, NOW))
    assert joining_fault(used_up, NOW, again=True) is None
    assert "expired" in str(joining_fault(used_up, NOW + DAY, again=True))


def test_the_command_for_a_new_machine() -> None:
    assert enroll_command("https://a.example/", "press-07") == "edgectl enroll https://a.example --name press-07"
    assert enroll_command("https://a.example/x y", "press-*") == "edgectl enroll 'https://a.example/x y'"


def test_only_a_token_for_one_name_replaces_an_agent() -> None:
    one, many = Joining("a", 1, NOW, revoked=False), Joining("*", 1, NOW, revoked=False)
    assert name_fault(one, "a", taken=True) is None
    assert name_fault(many, "a", taken=False) is None
    assert "is enrolled already" in str(name_fault(many, "a", taken=True))
    assert "not 'b'" in str(name_fault(one, "b", taken=False))


@pytest.mark.parametrize(
    ("granted", "left"),
    [(None, []), ([], []), (["b"], ["b"]), (["*"], ["a", "b"]), (["c"], []), (["a", "b", "c"], ["a", "b"])],
)
def test_nothing_is_permitted_but_what_was_granted(granted: list[str] | None, left: list[str]) -> None:
    assert permitted(["a", "b"], granted) == left


def test_a_credential_is_replaced_when_half_of_its_life_is_over() -> None:
    assert not is_rotation_due(NOW, NOW + 10 * DAY, NOW + 4 * DAY)
    assert is_rotation_due(NOW, NOW + 10 * DAY, NOW + 5 * DAY)
    assert not is_rotation_due(NOW, None, NOW + 10_000 * DAY)


@pytest.mark.parametrize(
    ("found", "elsewhere"),
    [
        (Machine("id", "boot", "host"), False),
        (Machine("id", "rebooted", "host"), False),
        (Machine("id", "boot", "renamed"), False),
        (Machine("id", "other boot", "other host"), True),
        (Machine("other id", "boot", "host"), True),
    ],
)
def test_where_a_credential_is_used(found: Machine, *, elsewhere: bool) -> None:
    assert is_elsewhere(Machine("id", "boot", "host"), found) is elsewhere
    assert not is_elsewhere(Machine(None, None, None), found)
