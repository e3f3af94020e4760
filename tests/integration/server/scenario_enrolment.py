"""Join tokens, credentials and what is written into Airflow's audit log about them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow.models.log import Log
from sqlalchemy import select

from airflow_edge_server.domain.enrolment import Machine
from airflow_edge_server.store import enrolment
from airflow_edge_server.store.models import EdgeAgent, EdgeAgentCredential, EdgeAgentJob, EdgeAgentJoinToken
from integration.server import scenes

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

HERE = Machine("a" * 8, "boot-1", "press-host")
ELSEWHERE = Machine("b" * 8, "boot-2", "thief-host")


def join_tokens_are_stored_as_hashes_and_end() -> None:
    with scenes.db() as session:
        made = _token(session, name_pattern="press-*", uses=2)
    secret = made.text.split("_", 2)[2]
    with scenes.db() as session:
        row = session.get_one(EdgeAgentJoinToken, made.id)
        assert secret not in row.secret_hash
        for wrong in ("", made.text[:-1], made.text + "x", made.text.swapcase(), f"eaj_{'0' * 16}_{secret}"):
            assert enrolment.find_joining(session, wrong) is None, wrong
        assert [token.id for token in enrolment.list_join_tokens(session, usable=True)] == [made.id]
    for name in ("press-1", "press-2"):
        with scenes.db() as session:
            _join(session, made.text, name)
    assert "as often as it may be" in _refusal(made.text, "press-3")
    with scenes.db() as session:
        assert enrolment.list_join_tokens(session, usable=True) == []
        old = _token(session, name_pattern="x", valid_seconds=1)
        session.get_one(EdgeAgentJoinToken, old.id).expires_at = datetime.now(UTC) - timedelta(seconds=1)
        gone = _token(session, name_pattern="x")
        assert enrolment.revoke_join_token(session, gone.id, by="me") is True
        assert enrolment.revoke_join_token(session, gone.id, by="me") is False
        assert enrolment.revoke_join_token(session, "nothing") is None
    assert "expired" in _refusal(old.text, "x")
    assert "was revoked" in _refusal(gone.text, "x")
    events = [event for event, _ in _audit()]
    assert events.count("edge_agents.create_join_token") == 3
    assert events.count("edge_agents.enroll") == 2
    assert events.count("edge_agents.revoke_join_token") == 1
    assert secret not in json.dumps(_audit())


def a_token_lets_in_only_whom_it_names() -> None:
    with scenes.db() as session:
        many = _token(session, name_pattern="press-*", uses=5).text
        one = _token(session, name_pattern="press-1", queues=["other"], uses=5).text
    with scenes.db() as session:
        first = _join(session, many, "press-1")
    assert "for agents named" in _refusal(many, "oven-1")
    assert "is enrolled already" in _refusal(many, "press-1", public_key="22" * 32)
    with scenes.db() as session:
        again = _join(session, one, "press-1", machine=ELSEWHERE)
        assert again.replaced == 1
        assert enrolment.find_credential(session, first.credential_id) is None
        assert enrolment.find_credential(session, again.credential_id) is not None
        assert enrolment.granted_queues(session, "press-1") == ["other"]
    with scenes.db() as session:
        assert enrolment.revoke_agent(session, "press-1", by="me") == 1
        assert enrolment.find_credential(session, again.credential_id) is None
    # Who repeats what it sent before is not let in again; a machine that brings a new key is.
    assert "revoked or replaced since" in _refusal(many, "press-1")
    with scenes.db() as session:
        _join(session, many, "press-1", public_key="22" * 32)
        assert session.get_one(EdgeAgent, "press-1").revoked_at is None


def an_answer_is_given_again_to_the_same_key() -> None:
    with scenes.db() as session:
        text = _token(session, name_pattern="press-*", uses=2).text
    with scenes.db() as session:
        first = _join(session, text, "press-1")
    with scenes.db() as session:
        again = _join(session, text, "press-1", machine=ELSEWHERE)
    assert (again.credential_id, again.queues, again.replaced) == (first.credential_id, first.queues, 0)
    assert abs((again.expires_at or first.expires_at) - first.expires_at) < timedelta(milliseconds=1)  # type: ignore[operator]
    assert (first.repeated, again.repeated) == (False, True)
    with scenes.db() as session:
        assert session.scalars(select(EdgeAgentJoinToken)).one().uses_left == 1
        # The same key under another name is another agent.
        assert _join(session, text, "press-2").repeated is False
    assert "as often as it may be" in _refusal(text, "press-3")
    with scenes.db() as session:
        assert _join(session, text, "press-1").repeated is True
    assert [event for event, _ in _audit()].count("edge_agents.enroll") == 2


def what_cannot_be_a_join_token_is_named() -> None:
    for wrong, told in (
        ({"name_pattern": "a b"}, "'a b' is no name or pattern"),
        ({"queues": []}, "1 to 100 queues"),
        ({"queues": ["a,b"]}, "'a,b' is no name of a queue"),
        ({"uses": 0}, "uses must be between"),
        ({"valid_seconds": 0}, "is valid for 1 second"),
        ({"team": "a\nb"}, "is no name of a team"),
    ):
        with scenes.db() as session, pytest.raises(ValueError, match=told):
            _token(session, **wrong)
    with scenes.db() as session:
        assert enrolment.list_join_tokens(session) == []


def a_successor_takes_over_when_it_is_used() -> None:
    now = datetime.now(UTC)
    with scenes.db() as session:
        old = _join(session, _token(session, name_pattern="a").text, "a").credential_id
    with scenes.db() as session:
        lost = enrolment.add_successor(session, old, "22" * 32, credential_days=1, now=now)
        assert lost is not None
        lost_id = lost.id
    with scenes.db() as session:
        # Its agent has lost it, and makes another.
        new = enrolment.add_successor(session, old, "33" * 32, credential_days=1, now=now)
        assert new is not None
        new_id = new.id
        assert enrolment.find_credential(session, lost_id) is None
        assert enrolment.count_valid(session, "a") == 2
    with scenes.db() as session:
        assert enrolment.note_use(session, new_id, HERE, now=now) is None
        assert enrolment.find_credential(session, old) is None
        assert enrolment.count_valid(session, "a") == 1
        assert enrolment.add_successor(session, old, "44" * 32, credential_days=1, now=now) is None
    assert [event for event, _ in _audit()].count("edge_agents.rotate_credential") == 1


def a_credential_on_another_machine_is_named_with_both() -> None:
    with scenes.db() as session:
        used = _join(session, _token(session, name_pattern="a").text, "a").credential_id
    rebooted = Machine(HERE.agent_id, "boot-9", HERE.hostname)
    for machine, moved in ((HERE, False), (rebooted, False), (ELSEWHERE, True), (ELSEWHERE, False), (HERE, True)):
        with scenes.db() as session:
            assert (enrolment.note_use(session, used, machine, now=datetime.now(UTC)) is not None) is moved, machine
    found = [extra for event, extra in _audit() if event == "edge_agents.credential_elsewhere"]
    assert len(found) == 2
    assert "press-host" in found[0]["before"]
    assert "thief-host" in found[0]["now"]


def revoking_an_agent_cancels_its_jobs_if_asked() -> None:
    now = datetime.now(UTC)
    with scenes.db() as session:
        for name in ("a", "b"):
            _join(session, _token(session, name_pattern=name).text, name)
            values = {"ti_id": "t", "workload": {}, "owner": "o", "queue": "q", "queued_at": now}
            session.add(EdgeAgentJob(id=name, kind="task", state="running", agent_name=name, **values))
    with scenes.db() as session:
        assert enrolment.revoke_agent(session, "nobody") is None
        assert enrolment.revoke_agent(session, "a", jobs="finish", by="me") == 1
        assert enrolment.revoke_agent(session, "b", jobs="cancel", by="me", origin="cli on x") == 1
        assert enrolment.revoke_agent(session, "b") == 0
    with scenes.db() as session:
        reasons = dict(session.execute(select(EdgeAgentJob.id, EdgeAgentJob.cancel_reason)).tuples().all())
    assert reasons == {"a": None, "b": "the agent was revoked by me"}
    last = [extra for event, extra in _audit() if event == "edge_agents.revoke_agent"]
    assert last[1] == {"agent": "b", "from": "cli on x", "credentials": 1, "jobs": "cancel", "cancelled": 1}


def jobs_of_a_revoked_agent_that_is_away_end_in_airflow_or_go_on() -> None:
    """Through the executor's own sweep, and the scheduler's own code."""
    edge = scenes.executor()
    cancelled, goes_on = scenes.dag_run(2)
    scenes.queue(edge, [cancelled, goes_on])
    for ti_id, name in ((cancelled, "a"), (goes_on, "b")):
        with scenes.db() as session:
            _join(session, _token(session, name_pattern=name).text, name)
            agent = session.get_one(EdgeAgent, name)
            agent.state, agent.last_contact_at = "unknown", datetime.now(UTC) - timedelta(minutes=20)
        scenes.start(scenes.job_of(ti_id).id, name)
        scenes.set_ti(ti_id, state="running", last_heartbeat_at=datetime.now(UTC))
    with scenes.db() as session:
        enrolment.revoke_agent(session, "a", jobs="cancel", by="me")
        enrolment.revoke_agent(session, "b", jobs="finish", by="me")
    scenes.sweep(edge)
    assert [scenes.job_of(ti_id).state for ti_id in (cancelled, goes_on)] == ["running", "running"]
    with scenes.db() as session:
        for name in ("a", "b"):
            session.get_one(EdgeAgent, name).revoked_at = datetime.now(UTC) - timedelta(seconds=6)
    scenes.sweep(edge)
    scenes.sweep(edge)
    scenes.process_events(edge)
    assert scenes.job_of(cancelled).outcome == "lost"
    assert scenes.ti_state(cancelled) == "failed"
    assert "edge agent a: lost: the agent was revoked by me" in scenes.log_messages()
    # This one speaks to Airflow by itself, and is heard.
    assert scenes.job_of(goes_on).state == "running"
    assert scenes.ti_state(goes_on) == "running"


def queues_are_granted_and_taken_back() -> None:
    with scenes.db() as session:
        _join(session, _token(session, name_pattern="a").text, "a")
    with scenes.db() as session:
        assert enrolment.set_granted_queues(session, "a", ["y", "x", "x"], by="me") is True
        assert enrolment.set_granted_queues(session, "a", ["x", "y"], by="me") is False
        assert enrolment.set_granted_queues(session, "nobody", ["x"]) is None
        assert enrolment.granted_queues(session, "a") == ["x", "y"]
        assert enrolment.granted_queues(session, "nobody") is None


def what_is_not_valid_any_more_is_forgotten() -> None:
    with scenes.db() as session:
        _join(session, _token(session, name_pattern="a").text, "a")
        _join(session, _token(session, name_pattern="a").text, "a")
        kept = _token(session, name_pattern="b")
    with scenes.db() as session:
        future = datetime.now(UTC) + timedelta(seconds=1)
        assert enrolment.purge_credentials(session, before=future) == 1
        assert enrolment.purge_credentials(session, before=future + timedelta(hours=2)) == 3
        assert session.scalars(select(EdgeAgentCredential)).one().revoked_at is None
        assert enrolment.find_joining(session, kept.text) is None


def _site_2() -> None:
    scenes.agent("site-2", state="offline")


def _token(session: Session, **given: Any) -> enrolment.NewJoinToken:
    values: dict[str, Any] = {"name_pattern": "a", "queues": ["default"], "valid_seconds": 3_600.0, "by": "me"} | given
    return enrolment.create_join_token(session, **values)


def _join(
    session: Session, text: str, name: str, *, machine: Machine = HERE, public_key: str = "11" * 32
) -> enrolment.Enrolled:
    token = enrolment.find_joining(session, text)
    assert token is not None
    return enrolment.join(session, token, name=name, public_key=public_key, machine=machine, credential_days=180)


def _refusal(text: str, name: str, **given: Any) -> str:
    with pytest.raises(enrolment.JoinRefusedError) as refused, scenes.db() as session:
        _join(session, text, name, **given)
    return str(refused.value)


def _audit() -> list[tuple[str, dict[str, Any]]]:
    with scenes.db() as session:
        rows = session.scalars(select(Log).where(Log.event.startswith("edge_agents.")).order_by(Log.id)).all()
        return [(row.event, json.loads(row.extra or "{}")) for row in rows]
