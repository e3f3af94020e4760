"""How much undelivered log is kept, what is dropped beyond that, and how a log is read around what was dropped.

A log is shipped as a *stream* of bytes with offsets that server and agent agree on. It is stored in a *file* to which
the task appends. Without drops both are the same; a :class:`Cut` replaces a piece of the file by a marker line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

KEEP_PERCENT = 90
"""Once the limit is passed, so much of it is kept: or every new line would be another drop."""

LEAST_SHED_BYTES = 4_096
"""Dropping less than this is not worth its marker."""


@dataclass(frozen=True)
class Spooled:
    """The log of a job as far as the spool is concerned. Offsets of its stream."""

    job_id: str
    finished: bool
    size: int
    acked: int
    sent: int
    """Nothing beyond this has ever been sent. The server may have all before it, acknowledged or not."""


@dataclass(frozen=True)
class Shed:
    """Drop so many bytes of this job's log, from this offset of its stream on."""

    job_id: str
    offset: int
    count: int


def undelivered_bytes(logs: Iterable[Spooled]) -> int:
    """Return how much the server has not acknowledged."""
    return sum(max(0, log.size - log.acked) for log in logs)


def plan(logs: Sequence[Spooled], limit_bytes: int) -> list[Shed]:
    """Decide what to drop: the oldest bytes of finished jobs first, then of running ones, and nothing that was sent.

    :param logs: the oldest job first.
    """
    total = undelivered_bytes(logs)
    if total <= limit_bytes:
        return []
    excess = total - limit_bytes * KEEP_PERCENT // 100
    sheds = []
    for log in sorted(logs, key=lambda log: not log.finished):
        count = min(excess, log.size - log.sent)
        if count >= LEAST_SHED_BYTES:
            sheds.append(Shed(log.job_id, log.sent, count))
            excess -= count
    return sheds


@dataclass(frozen=True)
class Cut:
    """Bytes of a file that are no part of the stream; the marker stands in for them."""

    at: int
    """Place in the file."""
    dropped: int
    marker: bytes

    @property
    def end(self) -> int:
        """Place in the file where the stream goes on."""
        return self.at + self.dropped


def stream_size(file_size: int, cuts: Sequence[Cut]) -> int:
    """Return the stream's length."""
    return max(0, file_size - sum(cut.dropped - len(cut.marker) for cut in cuts))


def offset_of(cut: Cut, cuts: Sequence[Cut]) -> int:
    """Return the offset in the stream at which a cut's marker begins."""
    return cut.at - sum(earlier.dropped - len(earlier.marker) for earlier in cuts if earlier.at < cut.at)


def locate(offset: int, cuts: Sequence[Cut]) -> tuple[bytes, int, int | None]:
    """Find a place of the stream.

    :return: the rest of the marker there, if it is within one; the place in the file where the stream goes on; and how
        many bytes it goes on until the next cut, ``None``: to the end.
    """
    shift = 0
    for cut in cuts:
        begin = cut.at - shift
        if offset < begin:
            return b"", offset + shift, begin - offset
        if offset < begin + len(cut.marker):
            return cut.marker[offset - begin :], cut.end, 0
        shift += cut.dropped - len(cut.marker)
    return b"", offset + shift, None
