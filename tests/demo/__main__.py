"""Start an Airflow and an edge agent, run a Dag on the agent, show what happened, and leave nothing running."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn

import psutil

from demo.run import DAG_ID, DemoError, RunWatch
from demo.screen import Screen
from harness.agent import AgentProcess
from harness.processes import Keeper, ProcessError, marked_processes, tail
from harness.rest import RestError
from harness.site import USER, AirflowSite, SiteError
from harness.waiting import WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

PROJECT = Path(__file__).resolve().parents[2]
DEMO = PROJECT / ".demo"
STATE = DEMO / "run"
DAGS = Path(__file__).with_name("dags")
AGENT_NAME = "demo-edge"
AGENT_STOP_SECONDS = 20.0
LOG_LINES = 15


def main() -> int:
    """Run the demo and return the exit code."""
    screen = Screen()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        with _lock():
            return Demo(screen).run()
    except DemoError as error:
        screen.failure(str(error))
        return 1


def _interrupt(number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt(signal.Signals(number).name)


def _lock() -> IO[str]:
    """Take the lock of this clone's demo; it is held until the file is closed.

    :raises DemoError: when another demo holds it.
    """
    DEMO.mkdir(exist_ok=True)
    file = (DEMO / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        raise DemoError(
            f"a demo is already running in this clone (process {owner}); stop it with Ctrl-C, or use another clone"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


class Demo:
    """One demo from start to end."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._shown = False
        self._attached = sys.stdin.isatty() and sys.stdout.isatty()

    def run(self) -> int:
        """Run it, explain a failure, and clean up whatever happens."""
        keeper = Keeper()
        exit_code = 1
        try:
            self._set_up_and_show(keeper)
            exit_code = 0
        except KeyboardInterrupt:
            # Attached, Ctrl-C is how the demo is meant to end, once it has shown everything.
            exit_code = 0 if self._shown else 130
            self._screen.line()
        except (DemoError, SiteError) as error:
            self._explain(str(error), error.log)
        except (ProcessError, RestError, WaitTimeoutError) as error:
            self._explain(str(error), None)
        except OSError as error:
            self._explain(f"{error.filename or 'system'}: {error.strerror or error}", None)
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            left = self._clean_up(keeper)
        return exit_code or (1 if left else 0)

    def _set_up_and_show(self, keeper: Keeper) -> None:
        screen = self._screen
        screen.title("airflow-edge-agent demo: a Dag runs on a real edge agent")
        screen.progress(f"state and logs are in {_short(STATE)}")
        self._prepare_folder()
        with ExitStack() as stack:
            site = stack.enter_context(
                AirflowSite(
                    STATE / "central",
                    keeper=keeper,
                    environment=_environment("server"),
                    bundles={"demo": STATE / "central" / "dags"},
                    progress=screen.progress,
                )
            )
            site.start()
            screen.progress(f"Airflow answers at {site.url}")
            agent = stack.enter_context(self._start_agent(keeper, site))
            site.api.wait_for_dag(DAG_ID)
            run_id = site.api.trigger_dag(DAG_ID)
            screen.progress(f"triggered Dag {DAG_ID}, run {run_id}")

            def check() -> None:
                site.raise_if_failed()
                if not agent.running:
                    code = agent.process.exit_code if agent.process else None
                    raise DemoError(f"the agent ended with exit code {code}", agent.log)

            watch = RunWatch(site.api, screen, check=check, agent_log=agent.log)
            state = watch.follow(run_id)
            screen.progress(f"the run has ended: {screen.state(state)}")
            watch.verdict(run_id, state)
            screen.line()
            watch.show(run_id)
            self._prove_place(watch.own_lines(run_id, "list_sensors"))
            self._shown = True
            if self._attached:
                self._stay(site, check)
            self._stop_agent(agent)

    def _prepare_folder(self) -> None:
        if STATE.exists():
            shutil.rmtree(STATE)
        for place in ("central", "edge"):
            (STATE / place).mkdir(parents=True)
            shutil.copytree(DAGS, STATE / place / "dags", ignore=shutil.ignore_patterns("__pycache__"))
        STATE.chmod(0o700)

    def _start_agent(self, keeper: Keeper, site: AirflowSite) -> AgentProcess:
        environment = _environment("agent")
        if list(environment.glob("lib/python*/site-packages/airflow/__init__.py")):
            raise DemoError(
                f"{_short(environment)} holds Airflow, but an agent must do without; run 'make clean' first"
            )
        token = site.create_join_token(AGENT_NAME)
        self._screen.progress(f"created a join token for agent '{AGENT_NAME}'")
        agent = AgentProcess(
            STATE / "edge" / "agent",
            keeper=keeper,
            environment=environment,
            runtime=_environment("runtime"),
            server_url=site.url,
            token=token,
            name=AGENT_NAME,
            bundles={"demo": STATE / "edge" / "dags"},
        )
        agent.start()
        self._screen.progress("started the agent: its environment holds no Airflow, its tasks use one of their own")
        return agent

    def _prove_place(self, lines: list[str]) -> None:
        """Check that tasks ran in the agent's runtime, from the agent's own copy of the Dag."""
        expected = {"Dag file": STATE / "edge" / "dags" / "edge_demo.py", "Python environment": _environment("runtime")}
        for what, path in expected.items():
            if f"{what}: {path}" not in lines:
                found = next((line for line in lines if line.startswith(what)), f"no line '{what}: ...'")
                raise DemoError(f"the task should have logged '{what}: {path}', its log has: {found}")
        self._screen.line(
            f"The tasks ran from the agent's own copy of the Dag ({_short(expected['Dag file'])}) "
            f"in its task runtime ({_short(expected['Python environment'])})."
        )

    def _stay(self, site: AirflowSite, check: Callable[[], None]) -> None:
        self._screen.line()
        self._screen.title(f"Airflow is at {site.url}  (user {USER}, password {site.password})")
        self._screen.line("Ctrl-C stops everything.")
        while True:
            check()
            time.sleep(1)

    def _stop_agent(self, agent: AgentProcess) -> None:
        code = agent.stop(AGENT_STOP_SECONDS)
        if code != 0:
            raise DemoError(f"the agent should stop cleanly when asked to, its exit code is {code}", agent.log)

    def _explain(self, reason: str, log: Path | None) -> None:
        screen = self._screen
        screen.line()
        screen.failure(reason)
        if log is not None and log.exists():
            screen.line(f"The last lines of {_short(log)}:")
            for line in tail(log, LOG_LINES).splitlines():
                screen.line(f"    {line}")
        screen.line(f"All logs: {_short(STATE)}/central/logs and {_short(STATE)}/edge/agent/agent.log")

    def _clean_up(self, keeper: Keeper) -> list[psutil.Process]:
        forced = keeper.close()
        for name in forced:
            self._screen.progress(f"had to be killed: {name}")
        left = marked_processes(keeper.marker)
        if left:
            self._screen.failure(f"still running: {', '.join(f'{one.name()} ({one.pid})' for one in left)}")
        else:
            self._screen.progress("everything is stopped")
        return left


def _environment(kind: str) -> Path:
    path = DEMO / f"env-{kind}"
    if not (path / "bin" / "python").exists():
        raise DemoError(f"{_short(path)} is missing; start the demo with 'make demo', which sets it up")
    return path


def _short(path: Path) -> str:
    return str(path.relative_to(PROJECT)) if path.is_relative_to(PROJECT) else str(path)


if __name__ == "__main__":
    sys.exit(main())
