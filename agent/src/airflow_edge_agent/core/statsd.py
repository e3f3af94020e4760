"""What tasks tell to StatsD: reads the lines, and adds them up to a frame of bounded size."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from airflow_edge_agent.protocol.frames import (
    MAX_METRIC_TAGS,
    MAX_TASK_METRICS,
    MAX_TIMINGS,
    TaskMetric,
    TaskMetrics,
)

MAX_LINES = 20_000
"""Most lines that are looked at between two frames."""

MAX_ALL_TIMINGS = 1_000
"""Most values of all timings together in one frame."""

MAX_NAME_BYTES = 24 * 1024
"""Most bytes of all names and tags together in one frame."""

MAX_DROPPED = 2**31 - 1

_MOST_VALUE = 1e15
_TAG_BYTES = 6
"""What JSON puts around a tag."""

_LINE = re.compile(
    r"(?P<name>[A-Za-z0-9_./-]{1,250})(?P<influx>(?:,[^,=:|]{1,60}=[^,=|]{0,200}){0,100})"
    r":(?P<value>[+-]?[0-9][0-9.eE+-]{0,40})\|(?P<kind>c|g|ms)"
    r"(?:\|@(?P<rate>[0-9.eE-]{1,20}))?(?:\|#(?P<datadog>[^|]{0,2000}))?"
)
_TAG_NAME = re.compile(r"[A-Za-z0-9_.-]{1,60}")
_NOT_IN_VALUES = re.compile(r"[^A-Za-z0-9_./-]")

_KINDS = {"c": "counter", "g": "gauge", "ms": "timing"}

Tags = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Line:
    """One value."""

    name: str
    kind: str
    tags: Tags
    value: float
    delta: bool


def parse(line: str) -> Line | None:
    """Read a line as Airflow writes it, with tags of InfluxDB's or Datadog's manner; ``None``: it is none.

    Understood are counters, gauges (with a sign: what is to be added) and timings in milliseconds, with or without a
    sampling rate. In values of tags, what cannot be told further becomes an underscore.
    """
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    value, rate = _number(match["value"]), _number(match["rate"] or "1")
    tags = _tags(match["influx"][1:], "=", match["datadog"] or "")
    if value is None or tags is None or rate is None or not 0 < rate <= 1:
        return None
    kind = _KINDS[match["kind"]]
    if kind == "counter":
        value /= rate
    if abs(value) > _MOST_VALUE or (kind == "timing" and value < 0):
        return None
    return Line(match["name"], kind, tags, value, kind == "gauge" and match["value"][0] in "+-")


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _tags(influx: str, sign: str, datadog: str) -> Tags | None:
    pairs = [one.partition(sign) for one in influx.split(",") if one] + [
        one.partition(":") for one in datadog.split(",") if one
    ]
    tags = {name: _NOT_IN_VALUES.sub("_", value)[:200] for name, _, value in pairs}
    if len(tags) > MAX_METRIC_TAGS or not all(_TAG_NAME.fullmatch(name) for name in tags):
        return None
    return tuple(sorted(tags.items()))


@dataclass(slots=True)
class _Sum:
    values: list[float] = field(default_factory=list)
    delta: bool = False


class Collected:
    """What has been told since the last frame.

    Never raises, whatever it is fed with, and never makes more than one frame may hold.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str, Tags], _Sum] = {}
        self._values = 0
        """How many values went into the sums."""
        self._lines = self._name_bytes = self._timings = 0
        self.dropped = 0

    @property
    def empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not self._sums and not self.dropped

    def feed(self, datagram: bytes) -> None:
        """Take in what came from a task: one line or several."""
        if self._lines >= MAX_LINES:
            self._drop(datagram.count(b"\n") + 1)
            return
        for raw in datagram.split(b"\n"):
            text = raw.decode("ascii", errors="replace").strip()
            if not text:
                continue
            self._lines += 1
            line = parse(text) if self._lines <= MAX_LINES else None
            if line is None or not self._add(line):
                self._drop(1)

    def take(self) -> TaskMetrics:
        """Return it as a frame, and begin anew."""
        metrics = [
            TaskMetric(name=name, kind=kind, tags=dict(tags), values=found.values, delta=found.delta)
            for (name, kind, tags), found in self._sums.items()
        ]
        frame = TaskMetrics(metrics=metrics, dropped=self.dropped)
        self._begin(dropped=0)
        return frame

    def discard(self) -> None:
        """Give up what there is, as dropped: it has become too old."""
        self._begin(dropped=min(self.dropped + self._values, MAX_DROPPED))

    def _begin(self, *, dropped: int) -> None:
        self._sums.clear()
        self._values = self._lines = self._name_bytes = self._timings = 0
        self.dropped = dropped

    def _drop(self, count: int) -> None:
        self.dropped = min(self.dropped + count, MAX_DROPPED)

    def _add(self, line: Line) -> bool:
        key = (line.name, line.kind, line.tags)
        found = self._sums.get(key)
        if found is None:
            size = len(line.name) + sum(len(name) + len(value) + _TAG_BYTES for name, value in line.tags)
            full = len(self._sums) >= MAX_TASK_METRICS or self._name_bytes + size > MAX_NAME_BYTES
            if full or (line.kind == "timing" and self._timings >= MAX_ALL_TIMINGS):
                return False
            self._name_bytes += size
            found = self._sums[key] = _Sum(delta=line.delta)
        if line.kind == "timing":
            if len(found.values) >= MAX_TIMINGS or self._timings >= MAX_ALL_TIMINGS:
                return False
            self._timings += 1
            found.values.append(round(line.value, 3))
        elif not found.values or (line.kind == "gauge" and not line.delta):
            found.values, found.delta = [line.value], line.delta
        else:
            added = found.values[0] + line.value
            if abs(added) > _MOST_VALUE:
                return False
            found.values = [added]
        self._values += 1
        return True
