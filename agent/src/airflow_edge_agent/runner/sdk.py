"""Calls the installed Task SDK's own supervisor, and watches what it tells Airflow.

Everything of the SDK is looked up when it is used, by name: one runner serves Task SDK 1.1 to 1.3. Only its public
entry points are called.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import signal
import sys
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from . import relay, threaded
from .outcome import (
    Answer,
    Observed,
    Report,
    Terminated,
    describe,
    judge_callback,
    judge_connection_test,
    judge_task,
    one_line,
)
from .waking import WakingSelector
from .wire import Kind, Outcome, Run

_MOST_ANSWER_CHARS = 300

_CONNECT_SECONDS = 5.0


def supervise(run: Run) -> Report:
    """Run one workload to its end, in this process and one child of it, and report how it ended.

    :raises Terminated: when SIGTERM came before the workload started.
    """
    seen = Observed(secrets={run.token} - {""})
    _install_sigterm(seen)
    return _SUPERVISORS[run.kind](run, seen)


def supervise_on_thread(run: Run, supervision: threaded.Supervision) -> Report:
    """Run one task to its end, in a process that the zygote forks, and report how it ended.

    :raises Terminated: the task was aborted.
    """
    supervision.seen.secrets |= {run.token} - {""}
    with threaded.supervising(supervision):
        return _supervise_task(run, supervision.seen)


def fits_a_thread(run: Run) -> bool:
    """Tell whether the job is one that a thread can supervise; the others get a process that does.

    Callbacks and connection tests hand what they need to their process by forking it from the supervisor's.
    """
    if run.kind != "task":
        return False
    try:
        manager = importlib.import_module("airflow.sdk.execution_time.coordinator").get_coordinator_manager()
        ti = run.workload.get("ti")
        coordinator = manager.for_queue((ti.get("queue") if isinstance(ti, dict) else None) or "default")
    except ImportError:
        return True  # a Task SDK that runs nothing but Python
    except Exception:  # noqa: BLE001 -- the SDK finds it again when it runs the task, and says so
        return True
    return type(coordinator).__name__ == "_PythonCoordinator"


def _supervise_task(run: Run, seen: Observed) -> Report:
    exit_code = error = client = None
    try:
        module = importlib.import_module("airflow.sdk.execution_time.supervisor")
        entry = getattr(module, "supervise_task", None) or module.supervise
        models = importlib.import_module("airflow.sdk.api.datamodels._generated")
        workload = run.workload
        if (refusal := cannot_relay(run, entry)) is not None:
            return refusal
        client = _client(run, seen)
        exit_code = _call(
            entry,
            {
                "ti": models.TaskInstance.model_validate(workload.get("ti")),
                "bundle_info": models.BundleInfo.model_validate(workload.get("bundle_info")),
                "dag_rel_path": workload.get("dag_rel_path"),
                "token": run.token,
                "server": run.server,
                "client": client,
                "log_path": _log_path(run),
                "sentry_integration": workload.get("sentry_integration") or "",
            },
        )
    except Exception as raised:  # noqa: BLE001 -- the outcome of the job says what it was
        error = raised
    finally:
        if client is not None:
            client.close()
    report = judge_task(seen, exit_code=None if exit_code is None else int(exit_code), error=error)
    _explain(report, error)
    return report


def _supervise_callback(run: Run, seen: Observed) -> Report:
    exit_code = error = None
    try:
        module = importlib.import_module("airflow.sdk.execution_time.callback_supervisor")
    except ImportError:
        return Report(Outcome.NOT_STARTED, None, "could not be started: this Task SDK is too old to run callbacks")
    try:
        models = importlib.import_module("airflow.sdk.api.datamodels._generated")
        if (refusal := cannot_relay(run, module.supervise_callback)) is not None:
            return refusal
        workload = run.workload
        data = workload["callback"].get("data") or {}
        exit_code = _call(
            module.supervise_callback,
            {
                "id": workload["callback"]["id"],
                "callback_path": data.get("path", ""),
                "callback_kwargs": data.get("kwargs") or {},
                "bundle_info": models.BundleInfo.model_validate(workload.get("bundle_info")),
                "dag_rel_path": workload.get("dag_rel_path"),
                "token": run.token,
                "server": run.server,
                "client": _client(run, seen),
                "log_path": _log_path(run),
            },
        )
    except Exception as raised:  # noqa: BLE001 -- the outcome of the job says what it was
        error = raised
    code = None if exit_code is None else int(exit_code)
    report = judge_callback(exit_code=code, error=error, secrets=seen.secrets)
    _explain(report, error)
    return report


def _supervise_connection_test(run: Run, seen: Observed) -> Report:
    """Run a connection test, which reports to Airflow itself. It has no log: what it says goes to our own output."""
    exit_code = error = None
    try:
        module = importlib.import_module("airflow.sdk.execution_time.connection_test_supervisor")
    except ImportError:
        return Report(Outcome.NOT_STARTED, None, "could not be started: this Task SDK is too old to test connections")
    try:
        workload = run.workload
        if run.relay is not None:
            # It makes its client itself, and this process is there for nothing else.
            setattr(module, "Client", lambda **_: _client(run, seen))  # noqa: B010 -- mypy knows no such name
        exit_code = _call(
            module.supervise_connection_test,
            {
                "connection_test_id": uuid.UUID(str(workload["connection_test_id"])),
                "connection_id": workload["connection_id"],
                "timeout": int(workload["timeout"]),
                "token": run.token,
                "server": run.server,
            },
        )
    except Exception as raised:  # noqa: BLE001 -- the outcome of the job says what it was
        error = raised
    report = judge_connection_test(
        exit_code=None if exit_code is None else int(exit_code), error=error, secrets=seen.secrets
    )
    _explain(report, error)
    return report


_SUPERVISORS: dict[Kind, Callable[[Run, Observed], Report]] = {
    "task": _supervise_task,
    "callback": _supervise_callback,
    "connection_test": _supervise_connection_test,
}


def cannot_relay(run: Run, entry: Callable[..., Any]) -> Report | None:
    """Say that a job is to be relayed by an SDK that takes no client from us; ``None``: all is well.

    Without it, the SDK would try to reach Airflow by itself, with a token that Airflow has never seen.
    """
    if run.relay is None or "client" in inspect.signature(entry).parameters:
        return None
    detail = (
        "could not be started: this Task SDK cannot reach Airflow through the agent. Install one that can (1.1 or "
        'newer), or set execution_api = "direct" in the agent\'s configuration'
    )
    print(detail, file=sys.stderr)  # noqa: T201 -- this process's stderr is the job's supervisor.log
    return Report(Outcome.NOT_STARTED, None, detail)


def _call(entry: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Call an entry point with those arguments that it knows."""
    known = inspect.signature(entry).parameters
    return entry(**{name: value for name, value in arguments.items() if name in known})


def _log_path(run: Run) -> str:
    # Below [logging] base_log_folder, which the runner has set to the folder of all jobs.
    return f"{run.job_id}/task.log"


def _explain(report: Report, error: BaseException | None) -> None:
    if error is not None and report.outcome in (Outcome.CRASHED, Outcome.FAILED):
        traceback.print_exception(error, file=sys.stderr)
    if report.detail:
        print(report.detail, file=sys.stderr)  # noqa: T201 -- this process's stderr is the job's supervisor.log


def _client(run: Run, seen: Observed) -> Any:
    """Create the SDK's client for the Execution API; it notes in ``seen`` what the outcome depends on."""
    httpx = importlib.import_module("httpx")
    stock: Any = importlib.import_module("airflow.sdk.api.client").Client
    client = stock(base_url=run.server, token=run.token, **_way(run, httpx))
    stock_send = client.send
    never_sent = (
        httpx.ConnectError,
        httpx.ConnectTimeout,
        httpx.PoolTimeout,
        httpx.ProxyError,
        httpx.UnsupportedProtocol,
    )

    def send(request: Any, **options: Any) -> Any:
        # Below the SDK's retries and above its own hooks, which turn a bad answer into an error.
        if (supervision := threaded.current()) is not None:
            supervision.check()
        try:
            response = stock_send(request, **options)
        except httpx.HTTPStatusError as error:
            _note(seen, request, error.response)
            raise
        except httpx.TransportError as error:
            _note_silence(seen, request, sent=not isinstance(error, never_sent))
            raise
        _note(seen, request, response)
        return response

    # On the instance: the SDK caches the TLS context per class, and this one's is loaded.
    client.send = send
    return client


def _way(run: Run, httpx: Any) -> dict[str, Any]:
    if run.relay is None:
        return {"limits": httpx.Limits(max_keepalive_connections=1, max_connections=10)}

    def check() -> None:
        if (supervision := threaded.current()) is not None:
            supervision.check()

    # The agent always answers in the end: it knows how long a server may be away.
    timeout = httpx.Timeout(None, connect=_CONNECT_SECONDS)
    return {
        "transport": relay.RelayTransport(
            run.relay, check, run.patience_seconds or relay.AWAY_SECONDS, _folder_of(run)
        ),
        "timeout": timeout,
    }


def _folder_of(run: Run) -> Path | None:
    jobs = os.environ.get("AIRFLOW__LOGGING__BASE_LOG_FOLDER")
    return Path(jobs) / run.job_id if jobs and run.kind == "task" else None


def _note(seen: Observed, request: Any, response: Any) -> None:
    if fresh := response.headers.get("Refreshed-API-Token"):
        seen.secrets.add(fresh)
    path = request.url.path
    if "/task-instances/" not in path:
        return
    call = path.rpartition("/")[2]
    if call not in ("run", "state", "heartbeat"):
        return
    answer = Answer(response.status_code)
    if not answer.good:
        answer.text = one_line(_reason(response), seen.secrets)[:_MOST_ANSWER_CHARS]
    if call == "run":
        seen.start = answer
    elif call == "state" and answer.good:
        seen.delivered = _state_in(request)
    elif call == "state":
        seen.state_refused = answer
    elif not answer.good:
        seen.heartbeat_refused = answer


def _note_silence(seen: Observed, request: Any, *, sent: bool) -> None:
    if sent and request.url.path.endswith("/run"):
        seen.start_unanswered = True


def _reason(response: Any) -> str:
    """Return what a bad answer says of itself."""
    try:
        response.read()
        detail = response.json().get("detail")
    except Exception:  # noqa: BLE001 -- whatever a proxy may have sent instead: the status alone must do
        return str(response.reason_phrase)
    if isinstance(detail, dict):
        text = f"{detail.get('reason', '')}: {detail.get('message', '')}"
        previous = detail.get("previous_state")
        return f"{text} (state: {previous})" if previous else text
    return str(detail or response.reason_phrase)


def _state_in(request: Any) -> str:
    try:
        state = json.loads(request.content).get("state")
    except (ValueError, AttributeError):
        state = None
    return str(state or "unknown")


def _install_sigterm(seen: Observed) -> None:
    """Make SIGTERM end this process cleanly until the SDK's supervisor takes it over."""
    owner = os.getpid()

    def handle(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:
            # A process that the SDK has just forked and that has not reset its handlers yet.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        elif seen.delivered is None and not seen.started:
            raise Terminated
        else:
            # The task is running, but the SDK does not listen yet; or it is over, and this is not sent again.
            WakingSelector.pending_signal = number

    signal.signal(signal.SIGTERM, handle)


def explain_error(error: BaseException, run: Run) -> str:
    """Say in one line what an unexpected error is, without the job's token."""
    return describe(error, {run.token} - {""})
