"""Runs one row, and judges it."""

from __future__ import annotations

import shutil
import time
import traceback
from contextlib import ExitStack

import psutil

from faults import checks
from faults.catalogue import Unavailable, small_spool
from faults.world import World
from harness.processes import ProcessError
from harness.waiting import WaitTimeoutError
from survival.rows import HEARTBEAT_SECONDS, Fault, Sizes
from survival.trial import Row, Trial

SETTINGS = {
    "AIRFLOW__EDGE_AGENT__HEARTBEAT_INTERVAL": f"{HEARTBEAT_SECONDS:g}",
    # As many tasks at once as the crowd has.
    "AIRFLOW__CORE__PARALLELISM": "1000",
    "AIRFLOW__CORE__DEFAULT_POOL_TASK_SLOT_COUNT": "1000",
}
"""What the suite needs of Airflow."""


def run_row(world: World, fault: Fault, sizes: Sizes) -> Row:
    """Let one fault happen; never raises for what comes of it."""
    row = Row(fault.name, skipped=fault.elsewhere)
    if row.skipped:
        return row
    root = world.root / "runs" / "".join(letter if letter.isalnum() else "-" for letter in fault.name)
    shutil.rmtree(root, ignore_errors=True)
    began, sizes_before = time.monotonic(), checks.log_sizes(world.site.logs)
    name = world.name(1)
    found = checks.Findings()
    try:
        with ExitStack() as stack:
            disk = stack.enter_context(small_spool()) if fault.small_disk else None
            trial = stack.enter_context(
                Trial(world, root, settings=fault.settings(sizes), state_dir=disk, copy=fault.copy)
            )
            fault.act(trial, row, sizes)
            row.expect(row.left == 0, f"{row.left} processes of ended tasks are left")
            checks.check_delivery(trial, found)
            checks.check_end(trial, found)
        checks.check_server(world.site.logs, sizes_before, found)
    except Unavailable as reason:
        row.skipped = str(reason)
    except (WaitTimeoutError, ProcessError, AssertionError, psutil.Error) as error:
        row.findings.append(str(error) or repr(error))
    except Exception:  # noqa: BLE001 -- one row that cannot be judged must not end the others
        row.findings.append(f"the row itself failed: {traceback.format_exc()}")
    row.findings += found.lines()
    row.seconds = time.monotonic() - began
    if row.findings:
        world.retire(name)
    elif not row.skipped:
        shutil.rmtree(root, ignore_errors=True)
    return row
