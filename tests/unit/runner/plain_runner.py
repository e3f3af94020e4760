"""The runner's program with the SDK replaced: a job does what its workload says. Started by tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from airflow_edge_agent.runner import main, sdk, warm, wire
from airflow_edge_agent.runner.outcome import Observed, Report


def open_files() -> list[str]:
    found = []
    for descriptor in range(64):
        with contextlib.suppress(OSError):
            found.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()).partition(":")[0])
    return found


def body(run: wire.Run) -> Report:
    work = run.workload
    seen = Observed()
    sdk._install_sigterm(seen)
    match work["do"]:
        case "nothing":
            return Report(wire.Outcome.FINISHED, 0, None, "success")
        case "tell":
            told = {
                "cwd": str(Path.cwd()),
                "tmpdir": os.environ["TMPDIR"],
                "notify": os.environ.get("NOTIFY_SOCKET"),
                "session": os.getsid(0) == os.getpid(),
                "fds": open_files(),
                "mask": len(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
                "main": hasattr(sys.modules["__main__"], "__file__"),
                "umask": os.umask(0o077),
                "name": Path("/proc/self/comm").read_text().strip(),
            }
            (Path.cwd() / "left").mkdir()
            Path(work["file"]).write_text(json.dumps(told))
            return Report(wire.Outcome.FINISHED, 0, None, "success")
        case "ignore":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            Path(work["file"]).touch()
            time.sleep(600)
        case "sleep":
            # One child in the session, one that has left it.
            subprocess.Popen(["sleep", "600"])
            subprocess.Popen(["sleep", "600"], start_new_session=True)
            Path(work["file"]).touch()
            time.sleep(600)
        case "leave":
            # A process in a session of its own, whose parent is gone.
            code = "import subprocess; print(subprocess.Popen(['sleep', '600'], stdout=-3, start_new_session=True).pid)"
            out = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
            Path(work["file"]).write_bytes(out.stdout)
            return Report(wire.Outcome.FINISHED, 0, None, "success")
        case "burn":
            code = "import time\nwhile time.process_time() < 0.3: pass"
            subprocess.run([sys.executable, "-c", code], check=True)
            return Report(wire.Outcome.FINISHED, 0, None, "success")
        case "raise":
            raise RuntimeError(f"with {run.token}")
        case "exit":
            os._exit(work["code"])
    raise AssertionError(work)


def steps() -> Iterator[None]:
    gate = os.environ["SLOW_START"]
    while gate and not Path(gate).exists():
        time.sleep(0.01)
        yield
    if os.environ.get("UNUSABLE") or Path(os.environ.get("UNUSABLE_IF", "/nowhere")).exists():
        raise warm.UnusableRuntime("nothing works here")
    yield


if __name__ == "__main__":
    sys.exit(main.main(warm_up=steps, body=body, program=Path(__file__)))
