"""Frames to batches, as every carrier sends and receives them."""

from __future__ import annotations

from airflow_edge_agent.protocol.frames import MAX_FRAMES, AgentFrame

_FRAME_BYTES = 1_000
"""What a frame without log data takes, generously."""


def groups(frames: list[AgentFrame], limit_bytes: int) -> list[list[AgentFrame]]:
    """Split frames so that no batch grows beyond a size and beyond what the server takes."""
    split: list[list[AgentFrame]] = []
    size = limit_bytes
    for frame in frames:
        length = len(getattr(frame, "data", "")) + _FRAME_BYTES
        if size + length > limit_bytes or len(split[-1]) >= MAX_FRAMES:
            split.append([])
            size = 0
        split[-1].append(frame)
        size += length
    return split
