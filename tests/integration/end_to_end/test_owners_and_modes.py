"""Who may open what a running agent has on disk: everything is looked at, and compared with docs/security.md."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.agent import AgentProcess
from harness.site import AirflowSite
from harness.waiting import wait_until
from integration.end_to_end.conftest import StartAgent

pytestmark = pytest.mark.integration

PAGE = Path(__file__).parents[3] / "docs" / "security.md"
JOB_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
PASSING = {("state_dir/jobs/<job>/rendered.json", "file"): 0o600}
"""What is there for some milliseconds, when a task begins."""
KINDS = {stat.S_IFDIR: "folder", stat.S_IFREG: "file", stat.S_IFSOCK: "socket", stat.S_IFLNK: "link"}


def table() -> dict[tuple[str, str], int]:
    """Return the modes that the page promises, by name and kind."""
    rows = re.findall(r"^\| `([^`]+)` \| (folder|file|socket) \| ([0-7]{4}) \|", PAGE.read_text(), re.MULTILINE)
    return {(name, kind): int(mode, 8) for name, kind, mode in rows}


def everything(agent: AgentProcess) -> Iterator[tuple[str, os.stat_result]]:
    """Yield what there is in the agent's folders, named as in the table."""
    folders = {"state_dir": agent.state_dir, "runtime_dir": Path(str(agent.settings["runtime_dir"]))}
    for name, folder in folders.items():
        for path in (folder, *folder.rglob("*")):
            if name == "state_dir" and path.is_relative_to(folders["runtime_dir"]):
                continue
            below = path.relative_to(folder)
            try:
                yield name if path == folder else f"{name}/{JOB_ID.sub('<job>', str(below))}", path.lstat()
            except FileNotFoundError:
                continue  # a temporary file


def test_everything_has_the_owner_and_mode_that_is_promised(
    site: AirflowSite, start_agent: StartAgent, tmp_path: Path
) -> None:
    """A task is under way, so its workload and log are there."""
    rows = table()
    before = os.umask(0o000)  # the widest there is: what is closed is closed by ourselves
    try:
        agent = start_agent(settings={"execution_api": "relay", "metrics": {"relay_statsd": True}})
        run = site.api.trigger_dag("steps", conf={"dir": str(tmp_path)})
        began = tmp_path / "notes"
        wait_until(lambda: began.exists() and "began" in began.read_text(), seconds=90, what="the task")
        seen: set[tuple[str, str]] = set()
        wrong = []
        for name, found in everything(agent):
            kind = KINDS[stat.S_IFMT(found.st_mode)]
            mode = stat.S_IMODE(found.st_mode)
            if (rows | PASSING).get((name, kind)) != mode or found.st_uid != os.geteuid():
                wrong.append(f"{name} | {kind} | {mode:04o} of {found.st_uid}")
            else:
                seen.add((name, kind))
        assert wrong == [], "\n".join(wrong)
        assert set(rows) == seen - set(PASSING), "the table names what is not there"
        (tmp_path / "go").touch()
        assert site.api.wait_for_run("steps", run) == "success"
    finally:
        os.umask(before)
