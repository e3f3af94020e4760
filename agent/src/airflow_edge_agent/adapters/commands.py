"""Runs a site's own programs, bounded in time and output."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal

from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError

MAX_OUTPUT_BYTES = 8 * 1024

_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "HOME")

_when_used = ConfigDict(defer_build=True)
_json: TypeAdapter[JsonValue] = TypeAdapter(JsonValue, config=_when_used)


async def run_json(command: list[str], timeout_seconds: float) -> JsonValue:
    """Run a program without a shell and return the JSON that it prints.

    :raises OSError: it cannot be started.
    :raises ValueError: it fails, takes too long, says too much, or what it says is no JSON.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(timeout_seconds):
            output = b""
            while len(output) <= MAX_OUTPUT_BYTES and (piece := await process.stdout.read(MAX_OUTPUT_BYTES)):
                output += piece
            if len(output) > MAX_OUTPUT_BYTES:
                raise ValueError(f"{command[0]}: says more than {MAX_OUTPUT_BYTES} bytes")
            code = await process.wait()
    except TimeoutError:
        raise ValueError(f"{command[0]}: takes longer than {timeout_seconds:g} s") from None
    finally:
        # With everything that it has started.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    if code != 0:
        raise ValueError(f"{command[0]}: ended with {code}")
    try:
        figure = _json.validate_json(output)
        json.dumps(figure, allow_nan=False)
    except (ValidationError, ValueError):
        raise ValueError(f"{command[0]}: prints no JSON") from None
    return figure
