"""What tasks tell to StatsD, or whoever else can send to that port."""

from __future__ import annotations

import json
from collections import Counter

from airflow_edge_agent.core.statsd import Collected
from airflow_edge_agent.protocol.codec import decode_agent_frame
from airflow_edge_agent.protocol.frames import MAX_TASK_METRICS_BYTES, TaskMetrics
from fuzz.material import Thought
from fuzz.run import FindingError

_NAMES = ["a", "press.parts", "ti.finish,dag_id=d,task_id=t", "n" * 250, "b,k=" + "v" * 200, "", "a b"]
_KINDS = ["c", "g", "ms", "ms|@0.1", "c|@0.5", "c|#k:v,on", "h", ""]


class Statsd:
    """Lines in, a frame out; the server has to understand it."""

    name = "statsd"

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""

    async def take(self, thought: Thought) -> int:
        """Feed some datagrams, take what they make; return how many lines there were."""
        chance = thought.chance
        collected = Collected()
        lines = 0
        for _ in range(chance.choice((1, 4, 40))):
            many = [
                f"{chance.choice(_NAMES)}{chance.choice(('', chance.randrange(900)))}:"
                f"{thought.value() if chance.random() < 0.3 else chance.uniform(-1e3, 1e6)}|{chance.choice(_KINDS)}"
                for _ in range(chance.choice((1, 2, 30)))
            ]
            lines += len(many)
            data = "\n".join(many).encode(errors="replace")
            collected.feed(thought.mangle(data) if chance.random() < 0.3 else data)
        frame = collected.take()
        data = frame.model_dump_json().encode()
        if len(data) > MAX_TASK_METRICS_BYTES or not isinstance(decode_agent_frame(json.loads(data)), TaskMetrics):
            raise FindingError(f"a frame of {len(data)} bytes that the server does not take")
        self.seen.update(metric.kind for metric in frame.metrics)
        self.seen["dropped"] += frame.dropped
        self.seen["frames"] += 1
        return lines
