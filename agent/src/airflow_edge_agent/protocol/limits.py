"""What one job may use: as people write it, and as machines tell each other.

The agent's configuration and a task's ``executor_config`` are read by the same model, so both take the same words.
"""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

MIN_MEMORY_BYTES = 16 * 1024 * 1024
"""No Python starts in less: so little is a forgotten unit."""

MAX_MEMORY_BYTES = 2**60
MAX_CPU_PERCENT = 1_000_000.0
MAX_PIDS = 4_194_304
"""What Linux itself can have at most."""

EXECUTOR_CONFIG_KEY = "edge_agent"
"""Under this key of a task's ``executor_config`` are its limits."""

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"(\d{1,15})(?:\.(\d{1,3}))?\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_SHARE = re.compile(r"(\d{1,7}(?:\.\d{1,3})?)\s*%")


class JobLimits(BaseModel):
    """The limits of one job, in plain numbers. ``None``: as much as there is."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    memory_max_bytes: Annotated[int, Field(ge=MIN_MEMORY_BYTES, le=MAX_MEMORY_BYTES)] | None = None
    """Beyond this the job is ended."""
    memory_high_bytes: Annotated[int, Field(ge=MIN_MEMORY_BYTES, le=MAX_MEMORY_BYTES)] | None = None
    """Beyond this the job is slowed down, and its memory reclaimed."""
    cpu_quota_percent: Annotated[float, Field(ge=1, le=MAX_CPU_PERCENT, allow_inf_nan=False)] | None = None
    """Of one core: 150 is one and a half."""
    pids_max: Annotated[int, Field(ge=1, le=MAX_PIDS)] | None = None
    """Processes and threads."""
    io_weight: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Share of a busy disk relative to other jobs; the kernel's own default is 100."""

    @property
    def any(self) -> bool:
        """Whether there is one at all."""
        return self != JobLimits()


def _size(value: object) -> int:
    """Read a number of bytes, which may have a unit of 1024: ``"512M"``."""
    if isinstance(value, str) and (found := _SIZE.fullmatch(value.strip())):
        # In whole numbers: half a gigabyte is a number of bytes, not one that is nearly right.
        whole, fraction, unit = found.groups(default="")
        factor = _UNITS[unit.upper()]
        count = int(whole) * factor + (int(fraction) * factor // 10 ** len(fraction) if fraction else 0)
    elif isinstance(value, int) and not isinstance(value, bool):
        count = value
    else:
        raise ValueError(f'{_short(value)} is no size: write bytes, or a number with K, M, G or T, like "512M"')
    if count < MIN_MEMORY_BYTES:
        raise ValueError(f"{_short(value)} is less than 16M, and no task starts in that: is a unit missing?")
    if count > MAX_MEMORY_BYTES:
        raise ValueError(f"{_short(value)} is more than any host has")
    return count


def _share(value: object) -> float:
    """Read a share of one core: ``"150%"``."""
    found = _SHARE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f'{_short(value)} is no share of a core: write a percentage, like "150%" for one and a half')
    share = float(found[1])
    if not 1 <= share <= MAX_CPU_PERCENT:
        raise ValueError(f"{_short(value)} is not between 1% and {MAX_CPU_PERCENT:.0f}%")
    return share


def _whole(highest: int) -> BeforeValidator:
    def check(value: object) -> int:
        # From a variable of the environment it comes as text.
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:  # noqa: PLR2004
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= highest:
            raise ValueError(f"{_short(value)} is no whole number from 1 to {highest}")
        return value

    return BeforeValidator(check)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."  # noqa: PLR2004  one line is to stay one


class LimitSettings(BaseModel):
    """The limits of one job, as people write them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    memory_max: Annotated[int, BeforeValidator(_size)] | None = None
    """Memory beyond which a job is ended, e.g. ``"512M"`` or ``"2G"``."""
    memory_high: Annotated[int, BeforeValidator(_size)] | None = None
    """Memory beyond which a job is slowed down and has to give some back."""
    cpu_quota: Annotated[float, BeforeValidator(_share)] | None = None
    """Share of CPU time; ``"100%"`` is one core, ``"150%"`` one and a half."""
    pids_max: Annotated[int, _whole(MAX_PIDS)] | None = None
    """Most processes and threads at a time."""
    io_weight: Annotated[int, _whole(10_000)] | None = None
    """Share of a busy disk against other jobs, 1 to 10000; the kernel gives 100 to who asks for none."""

    @model_validator(mode="after")
    def _high_below_max(self) -> LimitSettings:
        if self.memory_max is not None and self.memory_high is not None and self.memory_high > self.memory_max:
            raise ValueError("'memory_high' is above 'memory_max', so it would never matter")
        return self

    def limits(self) -> JobLimits:
        """Return them in plain numbers."""
        return JobLimits(
            memory_max_bytes=self.memory_max,
            memory_high_bytes=self.memory_high,
            cpu_quota_percent=self.cpu_quota,
            pids_max=self.pids_max,
            io_weight=self.io_weight,
        )


def read_executor_config(executor_config: Any) -> JobLimits | None:
    """Read the limits that a task asks for; ``None``: it asks for none.

    :param executor_config: the task's; other keys belong to other executors.
    :raises ValueError: in one line, what is wrong with it.
    """
    if not isinstance(executor_config, dict) or executor_config.get(EXECUTOR_CONFIG_KEY) is None:
        return None
    asked = executor_config[EXECUTOR_CONFIG_KEY]
    where = f'executor_config["{EXECUTOR_CONFIG_KEY}"]'
    if not isinstance(asked, dict):
        raise ValueError(f'{where} is no dictionary; write {{"{EXECUTOR_CONFIG_KEY}": {{"memory_max": "1G"}}}}')  # noqa: TRY004  one kind of fault for the caller
    try:
        limits = LimitSettings.model_validate(asked).limits()
    except ValidationError as error:
        raise ValueError(f"{where}: {'; '.join(_explain(fault) for fault in error.errors()[:5])}") from None
    return limits if limits.any else None


def _explain(fault: Any) -> str:
    name = ".".join(_short(part) if not isinstance(part, str) else part[:60] for part in fault["loc"][:1])
    if fault["type"] in ("extra_forbidden", "invalid_key"):
        known = list(LimitSettings.model_fields)
        close = difflib.get_close_matches(name, known, n=1)
        return f"{name!r} is no limit; " + (f"did you mean '{close[0]}'?" if close else f"there are {', '.join(known)}")
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{name!r}: {message}" if name else message
