"""Limits: what people may write, and which of them a job gets."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_edge_agent.adapters.runner import RunnerOptions, SubprocessRunner
from airflow_edge_agent.core.agent import AgentCore
from airflow_edge_agent.core.events import FrameArrived, LinkOpened, Say, StartJob
from airflow_edge_agent.core.limits import Granted, LimitRules, grant
from airflow_edge_agent.core.policy import Limits
from airflow_edge_agent.operations import limits_of
from airflow_edge_agent.protocol.frames import AcceptAck
from airflow_edge_agent.protocol.limits import JobLimits, LimitSettings, read_executor_config
from airflow_edge_agent.settings import Settings
from fakes.frames import make_offer, make_welcome

MIB, GIB = 2**20, 2**30


def read(**asked: Any) -> JobLimits:
    limits = read_executor_config({"edge_agent": asked})
    assert limits is not None
    return limits


def fault(asked: Any) -> str:
    with pytest.raises(ValueError, match="executor_config") as caught:
        read_executor_config({"edge_agent": asked})
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 * MIB),
        ("512 MiB", 512 * MIB),
        ("512mb", 512 * MIB),
        ("1.5G", 3 * GIB // 2),
        ("0.1T", 2**40 // 10),
        ("16777216", 16 * MIB),
        (536870912, 512 * MIB),
        ("20480k", 20 * MIB),
    ],
)
def test_sizes(text: Any, size: int) -> None:
    assert read(memory_max=text).memory_max_bytes == size
    assert read(memory_high=text).memory_high_bytes == size


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"memory_max": "1X"}, "'memory_max': '1X' is no size: write bytes, or a number with K, M, G or T"),
        ({"memory_max": "-1G"}, "is no size"),
        ({"memory_max": ""}, "'' is no size"),
        ({"memory_max": 1.5}, "1.5 is no size"),
        ({"memory_max": True}, "True is no size"),
        ({"memory_max": [1]}, "[1] is no size"),
        ({"memory_max": 512}, "512 is less than 16M, and no task starts in that: is a unit missing?"),
        ({"memory_max": "2000000T"}, "is more than any host has"),
        ({"memory_max": "9" * 500}, "..."),
        ({"cpu_quota": 1.5}, "'cpu_quota': 1.5 is no share of a core: write a percentage, like \"150%\""),
        ({"cpu_quota": "150"}, "is no share of a core"),
        ({"cpu_quota": "0.5%"}, "is not between 1% and 1000000%"),
        ({"pids_max": 0}, "'pids_max': 0 is no whole number from 1 to 4194304"),
        ({"pids_max": "many"}, "'many' is no whole number"),
        ({"pids_max": 2.0}, "2.0 is no whole number"),
        ({"io_weight": 10_001}, "10001 is no whole number from 1 to 10000"),
        ({"memory": "1G"}, "'memory' is no limit; did you mean 'memory_max'?"),
        ({"gpu": 1}, "'gpu' is no limit; there are memory_max, memory_high, cpu_quota, pids_max, io_weight"),
        ({"memory_max": "1G", "memory_high": "2G"}, "'memory_high' is above 'memory_max'"),
        ({1: 2}, "is no limit"),
        ("1G", 'is no dictionary; write {"edge_agent": {"memory_max": "1G"}}'),
        ({f"x{n}": 1 for n in range(500)}, "'x4' is no limit"),
    ],
)
def test_nonsense_is_named_in_one_line(asked: Any, message: str) -> None:
    found = fault(asked)
    assert message in found
    assert len(found) < 1_000


@pytest.mark.parametrize("config", [None, {}, {"edge_agent": None}, {"edge_agent": {}}, {"other": 1}, "text", 5])
def test_a_task_that_asks_for_nothing(config: Any) -> None:
    assert read_executor_config(config) is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=30) | st.binary(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
        max_leaves=6,
    )
    | st.fixed_dictionaries(
        {},
        optional={name: st.text(max_size=12) | st.integers() | st.floats() for name in LimitSettings.model_fields},
    )
)
@example({"\n": None})
def test_whatever_a_dag_says_there_are_limits_or_one_clear_fault(asked: Any) -> None:
    try:
        limits = read_executor_config({"edge_agent": asked})
    except ValueError as error:
        told = str(error)
    else:
        told = "executor_config"
        assert limits is None or JobLimits.model_validate_json(limits.model_dump_json()) == limits
    assert told.startswith("executor_config")
    assert "\n" not in told


def test_the_task_is_heard_before_its_queue_and_that_before_the_agent() -> None:
    rules = LimitRules(
        defaults=JobLimits(memory_max_bytes=GIB, pids_max=100, io_weight=30),
        queues={"big": JobLimits(memory_max_bytes=4 * GIB, cpu_quota_percent=200)},
    )
    assert grant(rules, "other", None).limits == rules.defaults
    assert grant(rules, "big", JobLimits(cpu_quota_percent=50)) == Granted(
        JobLimits(memory_max_bytes=4 * GIB, cpu_quota_percent=50, pids_max=100, io_weight=30)
    )


def test_nobody_gets_more_than_the_maximum() -> None:
    rules = LimitRules(
        queues={"big": JobLimits(memory_max_bytes=8 * GIB)},
        maximum=JobLimits(memory_max_bytes=2 * GIB, pids_max=50, io_weight=100),
    )
    # Whoever has no limit could use more than the most that is allowed.
    bounded = JobLimits(memory_max_bytes=2 * GIB, pids_max=50)
    assert grant(rules, "other", None) == Granted(bounded)
    assert grant(rules, "big", None) == Granted(bounded)
    asked = JobLimits(memory_max_bytes=GIB, pids_max=500, io_weight=10_000)
    assert grant(rules, "big", asked) == Granted(
        JobLimits(memory_max_bytes=GIB, pids_max=50, io_weight=100), ("pids_max", "io_weight")
    )


def test_a_maximal_weight_below_the_kernels_default_holds_for_all() -> None:
    assert grant(LimitRules(maximum=JobLimits(io_weight=20)), "q", None).limits.io_weight == 20


def test_the_runner_gets_what_is_granted_and_a_cut_is_told() -> None:
    rules = LimitRules(queues={"big": JobLimits(pids_max=7)}, maximum=JobLimits(memory_max_bytes=GIB))
    core = AgentCore(Limits(1, kill_grace_seconds=5, drain_deadline_seconds=0, jobs=rules))
    core.handle(LinkOpened(make_welcome()), 0)
    offer = make_offer(queue="big", limits=JobLimits(memory_max_bytes=2 * GIB))
    core.handle(FrameArrived(offer), 0)
    done = core.handle(FrameArrived(AcceptAck(job_id=offer.job_id, fence=offer.fence)), 0)
    assert StartJob(offer, JobLimits(memory_max_bytes=GIB, pids_max=7)) in done
    said = [one.message for one in done if isinstance(one, Say)]
    assert said == ["its memory_max_bytes is cut down to this agent's [limits.maximum]"]


@pytest.mark.parametrize(
    ("limits", "wire"),
    [(JobLimits(pids_max=7), {"pids_max": 7}), (JobLimits(), None), (None, None)],
)
async def test_the_runner_is_told(tmp_path: Path, limits: JobLimits | None, wire: dict[str, int] | None) -> None:
    lines: asyncio.Queue[bytes] = asyncio.Queue()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.put_nowait(await reader.readline())
        writer.close()

    path = tmp_path / "runner.sock"
    async with await asyncio.start_unix_server(listen, path):
        runner = SubprocessRunner(
            python=Path("/none"),
            socket_path=path,
            runner_dir=tmp_path,
            options=RunnerOptions(idle_seconds=1),
            environment={},
        )
        await runner.start(make_offer(), "http://server/execution/", limits)
        line = await asyncio.wait_for(lines.get(), 10)
        assert json.loads(line)["limits"] == wire
        await runner.close()


_LIMITS = st.builds(
    JobLimits,
    memory_max_bytes=st.none() | st.integers(16 * MIB, 64 * GIB),
    memory_high_bytes=st.none() | st.integers(16 * MIB, 64 * GIB),
    cpu_quota_percent=st.none() | st.floats(1, 1_000),
    pids_max=st.none() | st.integers(1, 1_000),
    io_weight=st.none() | st.integers(1, 10_000),
)


@given(_LIMITS, _LIMITS, _LIMITS, st.none() | _LIMITS)
def test_what_is_granted_is_asked_for_or_bounded(
    defaults: JobLimits, queue: JobLimits, maximum: JobLimits, asked: JobLimits | None
) -> None:
    granted = grant(LimitRules(defaults, {"q": queue}, maximum), "q", asked)
    for name in JobLimits.model_fields:
        got, most = getattr(granted.limits, name), getattr(maximum, name)
        sources = [getattr(one, name) for one in (asked, queue, defaults) if one is not None]
        first = next((value for value in sources if value is not None), None)
        if most is None:
            assert got == first
        elif got is not None:
            assert got <= most
            assert got in (first, most) or name == "io_weight"
        assert (name in granted.cut) == (asked is not None and getattr(asked, name) not in (None, got))


def test_what_is_configured_reaches_the_core() -> None:
    settings = Settings.model_validate(
        {
            "server_url": "https://airflow.example.com",
            "limits": {"memory_max": "256M", "queues": {"press": {"pids_max": 60}}, "maximum": {"cpu_quota": "150%"}},
        }
    )
    rules = limits_of(settings).jobs
    assert grant(rules, "press", None).limits == JobLimits(
        memory_max_bytes=256 * 2**20, pids_max=60, cpu_quota_percent=150
    )
