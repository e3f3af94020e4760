"""What is sent. Hypothesis thinks of values, a seeded generator puts them into frames, many from each thought."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from airflow_edge_agent.protocol.frames import MAX_FRAMES
from fakes.golden import NAMES, load

GOLDEN = {name: load(name) for name in NAMES}

SELDOM = frozenset({"hello", "goodbye", "close", "unknown"})
"""What ends a session, or says little: mostly something else is sent in their place."""

EDGES: list[Any] = [
    0, 1, -1, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, 10**400, 1e308, -0.0, float("nan"), float("inf"),
    "", " ", "x" * 63, "x" * 64, "x" * 2_001, "x" * 9_000, "\x00", "\x1b[31m", "\n<0>forged", "\u202e", "a\tb",
    "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-01-01T00:00:00", "2026-01-01T00:00:00Z", "1e309",
    "../../etc/passwd", "00000000-0000-4000-8000-000000000001", "default", "running", "idle", "finished", "lost",
    [], {}, None, True, False, [[]], {"a": {"b": {"c": []}}}, [None] * 200, "eJwDAAAAAAE=", "AAAA",
]  # fmt: skip

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**66), 2**66)
    | st.floats()
    | st.text(max_size=12)
    | st.datetimes().map(str)
    | st.sampled_from(EDGES)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)


@st.composite
def thoughts(draw: st.DrawFn) -> Thought:
    """Think of some values, and of a seed for what is done with them."""
    return Thought(draw(st.lists(VALUES, min_size=4, max_size=12)), random.Random(draw(st.integers(0, 2**64))))


@dataclass
class Thought:
    """Makes frames and batches of a few values."""

    values: list[Any]
    chance: random.Random
    job_ids: list[str] = field(default_factory=lambda: ["00000000-0000-4000-8000-000000000001"])
    fences: tuple[int, ...] = (1, 1, 1, 2, 3)

    def value(self) -> Any:
        return self.chance.choice(self.values if self.chance.random() < 0.7 else EDGES)

    def frame(self, kinds: list[str]) -> Any:
        """Return a frame: as it should be, with some fields changed, or nothing of the kind."""
        chance = self.chance
        if chance.random() < 0.002:
            return self.value()
        kind = chance.choice(kinds)
        if kind in SELDOM and chance.random() < 0.95:
            kind = chance.choice(kinds)
        frame = copy.deepcopy(GOLDEN[kind])
        for name in ("job_id", "fence"):
            if name in frame and chance.random() < 0.8:
                frame[name] = chance.choice(self.job_ids if name == "job_id" else list(self.fences))
        for _ in range(chance.choice((0, 1, 1, 1, 2, 4))):
            self._damage(frame)
        return frame

    def _damage(self, node: Any) -> None:
        chance = self.chance
        while isinstance(node, dict | list) and node:
            key: Any = chance.choice(list(node)) if isinstance(node, dict) else chance.randrange(len(node))
            if key == "type" and chance.random() < 0.9:
                return
            if isinstance(node[key], dict | list) and node[key] and chance.random() < 0.7:
                node = node[key]
                continue
            match chance.randrange(6):
                case 0:
                    del node[key]
                case 1 if isinstance(node, dict):
                    node[str(self.value())[:40]] = self.value()
                case 2 if isinstance(node[key], str):
                    text = node[key]
                    at = chance.randrange(len(text) + 1)
                    node[key] = (
                        text[:at] + chance.choice(["\x00", "\n", "\x1b[2J", "\u202e", "é", "x" * 300]) + text[at:]
                    )
                case 3 if isinstance(node, list):
                    node.extend([node[key]] * chance.choice((1, 20, 300)))
                case 3 | 4:
                    node[key] = self.value()
                case _:
                    node[key] = self._like(node[key])
            return

    def _like(self, value: Any) -> Any:
        """Return another value of the same kind: it gets further than one of another."""
        fit = [other for other in (*self.values, *EDGES) if type(other) is type(value)]
        return self.chance.choice(fit) if fit else self.value()

    def frames(self, kinds: list[str], most: int) -> list[Any]:
        """Return some frames; seldom more than are allowed."""
        count = MAX_FRAMES + 1 if self.chance.random() < 0.002 else self.chance.randint(1, most)
        return [self.frame(kinds) for _ in range(count)]

    def encode(self, session_id: str | None, frames: list[Any]) -> bytes:
        """Return a batch as it goes over the wire; sometimes with something wrong about the batch itself."""
        chance = self.chance
        batch: dict[str, Any] = {"session_id": session_id, "frames": frames}
        if chance.random() < 0.02:
            batch["wait_seconds"] = chance.choice([0.05, 1, 120, 121, -1, self.value()])
        if chance.random() < 0.02:
            batch[chance.choice(["session_id", "frames", "more"])] = self.value()
        try:
            return json.dumps(batch).encode()
        except ValueError:  # a number too long to be written
            return b'{"frames": [%d]}' % 10**300

    def mangle(self, data: bytes) -> bytes:
        """Damage bytes."""
        chance = self.chance
        out = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 8))):
            at = chance.randrange(len(out) + 1)
            match chance.randrange(6):
                case 0:
                    del out[at : at + chance.choice((1, 4, 200))]
                case 1:
                    out[at:at] = chance.randbytes(chance.choice((1, 4, 32)))
                case 2 if at < len(out):
                    out[at] ^= 1 << chance.randrange(8)
                case 3:
                    out[at:at] = out[: chance.choice((8, 64))]
                case 4:
                    out[at:at] = chance.choice(
                        [b"[" * 500, b'{"a":' * 300, b"\\ud800", b"\xff", b'"', b"9" * 5_000, b"\\u0000"]
                    )
                case _:
                    del out[at:]
        return bytes(out)
