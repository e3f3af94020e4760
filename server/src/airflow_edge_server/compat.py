"""The one place that knows Airflow's versions and its private corners."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow.configuration import conf

from airflow_edge_server import plainly

if TYPE_CHECKING:
    from collections.abc import Hashable
    from pathlib import Path

    from airflow.api_fastapi.auth.tokens import JWTGenerator
    from fastapi import Request
    from sqlalchemy.orm import Session
    from starlette.types import Receive, Scope, Send

log = plainly.logger(__name__)

REMOTE_LOG_HINT = (
    "To read the logs of finished tasks set [logging] remote_logging = True and "
    "[logging] remote_base_log_folder = edge-agent:// for the api-server"
)


def airflow_version() -> str:
    """Return the version of the installed Airflow."""
    from airflow import __version__  # noqa: PLC0415  kept lazy with all of Airflow in here

    return str(__version__)


@functools.cache
def _generator() -> tuple[JWTGenerator, float]:
    from airflow.api_fastapi.auth.tokens import JWTGenerator, get_signing_args  # noqa: PLC0415  api-server only

    valid_for = conf.getfloat("scheduler", "task_queued_timeout")
    generator = JWTGenerator(
        valid_for=valid_for,
        audience=conf.get_mandatory_list_value("execution_api", "jwt_audience")[0],
        issuer=conf.get("api_auth", "jwt_issuer", fallback=None),
        # The same key must be known to all api-servers: never make one up here.
        **get_signing_args(make_secret_key_if_needed=False),
    )
    return generator, valid_for


def mint_token(ti_id: str) -> str:
    """Return a token that starts this task instance or callback, and nothing else.

    Valid for ``[scheduler] task_queued_timeout`` seconds. Its first use brings an execution token.

    :raises airflow.exceptions.AirflowConfigException: when ``[api_auth]`` has no key to sign with.
    """
    _, valid_for = _generator()
    return sign_token(ti_id, "workload", valid_for=valid_for)


def sign_token(subject: str, scope: str, *, valid_for: float) -> str:
    """Return a token of the Execution API.

    :param scope: ``workload`` or ``execution``.
    :param valid_for: seconds.
    :raises airflow.exceptions.AirflowConfigException: when ``[api_auth]`` has no key to sign with.
    """
    generator, _ = _generator()
    return str(generator.generate(extras={"sub": subject, "scope": scope}, valid_for=valid_for))


def check_signing_key() -> None:
    """Check that tokens can be signed with a key that all processes of this Airflow know.

    :raises airflow.exceptions.AirflowConfigException: when there is none.
    """
    from airflow.api_fastapi.auth.tokens import get_signing_args  # noqa: PLC0415  as all in here
    from airflow.exceptions import AirflowConfigException  # noqa: PLC0415  as above

    try:
        get_signing_args(make_secret_key_if_needed=False)
    except ValueError as error:
        raise AirflowConfigException(f"no key to sign tokens with: {error}") from None


class ExecutionApi:
    """Airflow's Execution API, called in process.

    It is the app that this api-server has mounted. One that serves other parts only (``--apps core``), or the agent API
    alone, gets an app of its own with the first call.
    """

    def __init__(self) -> None:
        self._app: Any = None
        self._own: AsyncExitStack | None = None
        self._making = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, with a path below the Execution API's own prefix."""
        app = self._app or await self._find()
        await app(scope, receive, send)

    async def close(self) -> None:
        """End the app if it is our own."""
        if self._own is not None:
            await self._own.aclose()

    async def _find(self) -> Any:
        async with self._making:
            if self._app is None:
                self._app = _mounted_execution_app() or await self._make()
            return self._app

    async def _make(self) -> Any:
        from airflow.api_fastapi.common.dagbag import create_dag_bag  # noqa: PLC0415  as all in here
        from airflow.api_fastapi.execution_api.app import create_task_execution_api_app  # noqa: PLC0415  as above

        app = await asyncio.to_thread(create_task_execution_api_app)
        app.state.dag_bag = create_dag_bag()
        self._own = AsyncExitStack()
        await self._own.enter_async_context(app.router.lifespan_context(app))
        return app


def _mounted_execution_app() -> Any:
    main = sys.modules.get("airflow.api_fastapi.main")
    routes = main.app.routes if main is not None else ()
    return next((route.app for route in routes if getattr(route, "path", None) == "/execution"), None)


def task_key(executor: Any, ti: Any, **known: Any) -> Hashable:
    """Return what Airflow calls a task instance in its dealings with this executor.

    :param known: ``try_number``, when the caller has it: asking a partly loaded instance would cost a query each.
    """
    if hasattr(executor, "get_task_key"):  # Airflow 3.4
        return executor.get_task_key(ti)  # type: ignore[no-any-return]  # Airflow's own key, whatever it is
    if "try_number" in known:
        from airflow.models.taskinstancekey import TaskInstanceKey  # noqa: PLC0415  exists in this version

        key: Hashable = TaskInstanceKey(
            dag_id=ti.dag_id,
            task_id=ti.task_id,
            run_id=ti.run_id,
            try_number=known["try_number"],
            map_index=ti.map_index,
        )
        return key
    return ti.key  # type: ignore[no-any-return]  # as above


def callback_key(callback_id: str) -> Hashable:
    """Return what Airflow calls a callback in its dealings with an executor: until 3.2 its id, since then an object."""
    from airflow.models.callback import CallbackKey  # noqa: PLC0415  only where there are callbacks

    # Airflow 3.2 has the name already, for the type of the id.
    key: Hashable = callback_id if CallbackKey is str else CallbackKey(id=callback_id)
    return key


def executor_config(ti: Any) -> Any:
    """Return the ``executor_config`` of a workload's task instance.

    Airflow leaves it out of the workload's JSON, because executors other than the one it is meant for need not be able
    to read it; in the scheduler it is at hand.
    """
    return getattr(ti, "executor_config", None)


def stats() -> Any:
    """Return what emits Airflow's metrics: has ``incr``, ``gauge`` and ``timing``."""
    from airflow.observability.stats import Stats  # noqa: PLC0415  as all in here

    return Stats


def start_stats() -> None:
    """Let this process tell metrics. The api-server of 3.3 has done so itself, and does it in the same way.

    What fails stops nothing.
    """
    try:
        from airflow.observability.metrics import stats_utils  # noqa: PLC0415  as all in here

        named: dict[str, Any] = {}
        if "export_legacy_names" in inspect.signature(stats().initialize).parameters:
            named = {"export_legacy_names": conf.getboolean("metrics", "legacy_names_on")}
        takes = inspect.signature(stats_utils.get_stats_factory).parameters
        stats().initialize(factory=stats_utils.get_stats_factory(*[stats()][: len(takes)]), **named)
    except Exception as error:  # noqa: BLE001  a fault in the configuration of metrics
        log.warning("Metrics of tasks will not be told: Airflow's metrics cannot be set up: %s", error)


def tracing_on() -> bool:
    """Tell whether Airflow traces."""
    return bool(conf.getboolean("traces", "otel_on", fallback=False))


def is_connection_test(workload: Any) -> bool:
    """Tell whether a workload is a connection test, which Airflow has since 3.3."""
    from airflow.executors import workloads  # noqa: PLC0415  as all in here

    kind = getattr(workloads, "TestConnection", None)
    return kind is not None and isinstance(workload, kind)


def install_log_reader() -> bool:
    """Let this process read the logs that agents have delivered, before any other place.

    Airflow keeps one reader per process, in private hands. A reader that is configured stays, and is asked for every
    log that did not come from an agent. Safe to call again.

    :return: whether it is in place. If not, a warning says what to configure.
    """
    if log_reader_installed():
        return True
    from airflow_edge_server.log_io import EdgeLogIO  # noqa: PLC0415  api-server only

    try:
        from airflow import logging_config  # noqa: PLC0415  private use, guarded

        configured = logging_config.get_remote_task_log()
        connection = logging_config.get_default_remote_conn_id()
        logging_config._ActiveLoggingConfig.set(EdgeLogIO(configured), connection)  # noqa: SLF001  no public way
    except Exception as error:  # noqa: BLE001  whatever a future version does there must not stop the api-server
        log.warning(
            "Logs from agents cannot be shown by themselves in Airflow %s (%s: %s). %s.",
            airflow_version(),
            type(error).__name__,
            error,
            REMOTE_LOG_HINT,
        )
        return False
    return log_reader_installed()


def log_reader_installed() -> bool:
    """Tell whether Airflow asks our reader for logs in this process."""
    from airflow_edge_server.log_io import EdgeLogIO  # noqa: PLC0415  api-server only

    try:
        from airflow.logging_config import get_remote_task_log  # noqa: PLC0415  private use, guarded

        return isinstance(get_remote_task_log(), EdgeLogIO)
    except Exception:  # noqa: BLE001  as above
        return False


def remote_log_io() -> Any:
    """Return Airflow's remote log handler as configured, without our own reader; ``None``: there is none."""
    from airflow_edge_server.log_io import EdgeLogIO  # noqa: PLC0415  api-server only

    try:
        from airflow.logging_config import get_remote_task_log  # noqa: PLC0415  private use, guarded

        found = get_remote_task_log()
    except Exception as error:  # noqa: BLE001  whatever is configured there must not stop the api-server
        log.warning("Airflow's remote logging cannot be used (%s: %s)", type(error).__name__, error)
        return None
    return found.inner if isinstance(found, EdgeLogIO) else found


def rebased_log_io(remote: Any, folder: Path) -> Any:
    """Return a remote log handler that uploads from another folder than Airflow's log folder.

    In that folder it may delete what it has uploaded, and it finds nothing there but what it is given.

    :raises TypeError: when it cannot be told so.
    """
    if not hasattr(remote, "base_log_folder"):
        raise TypeError(f"{type(remote).__name__} takes no whole logs: it has no base_log_folder")
    moved = copy.copy(remote)
    moved.base_log_folder = type(remote.base_log_folder)(folder)
    return moved


def local_log_files(relative_path: str) -> list[str]:
    """Return the files of a log, those of triggers included, that lie in this host's own log folder."""
    from pathlib import Path  # noqa: PLC0415  as all in here

    base = Path(conf.get_mandatory_value("logging", "base_log_folder")).resolve()
    path = base / relative_path
    try:
        found = sorted(path.parent.glob(path.name + "*"))
    except (OSError, ValueError):
        return []
    # What is written below the log folder by others may be a link to anywhere.
    return [str(file) for file in found if file.is_file() and file.resolve().is_relative_to(base)]


def team_names(session: Session) -> list[str] | None:
    """Return Airflow's teams; ``None``: it has none, because ``[core] multi_team`` is off."""
    if not conf.getboolean("core", "multi_team", fallback=False):
        return None
    from airflow.models.team import Team  # noqa: PLC0415  as all in here

    return sorted(Team.get_all_team_names(session=session))


def base_url() -> str | None:
    """Return where the api-server is reached, as configured; ``None``: it is not."""
    url = conf.get("api", "base_url", fallback=None)
    return str(url).rstrip("/") or None if url else None


def bundle_url(address: str) -> str:
    """Return what Airflow's UI has to be told to load a file.

    Since 3.3 it begins at Airflow's base URL; before, it needs the whole path.

    :param address: relative to Airflow's base URL.
    """
    if _minor_version() >= (3, 3):
        return address
    return f"{urlsplit(base_url() or '').path}/{address}"


def _minor_version() -> tuple[int, int]:
    major, minor, *_ = airflow_version().split(".")
    return int(major), int(minor)


@dataclass(frozen=True, slots=True)
class AdminUser:
    """Somebody who uses the admin API."""

    name: str
    can_view: bool
    can_change: bool
    teams: frozenset[str] | None = None
    """Whose agents and jobs, beside those of no team; ``None``: everybody's, as Airflow has no teams."""


async def admin_user(request: Request) -> AdminUser:
    """Return who sends a request to the api-server, by its session's cookie or its token.

    To look is allowed to those who may see Airflow's jobs. To change is allowed to those who may also edit pools, which
    is the right to decide how much work goes where; every auth manager knows it, and it belongs to operators and
    administrators. A right of our own would be known to none of them: that of Airflow itself lets every viewer have it.
    Where Airflow has teams, both are for what is of no team, and of those to which the auth manager says he belongs.

    :raises fastapi.HTTPException: 401 without a valid one.
    """
    # All of it is loaded in an api-server anyway.
    from airflow.api_fastapi.app import get_auth_manager  # noqa: PLC0415
    from airflow.api_fastapi.auth.managers.models.resource_details import AccessView  # noqa: PLC0415
    from airflow.api_fastapi.core_api.security import get_user  # noqa: PLC0415
    from fastapi.security import HTTPBearer  # noqa: PLC0415
    from starlette.concurrency import run_in_threadpool  # noqa: PLC0415

    bearer = await HTTPBearer(auto_error=False)(request)
    user = await get_user(request, None if bearer is None else bearer.credentials, bearer)

    def decide() -> AdminUser:
        manager = get_auth_manager()
        can_view = manager.is_authorized_view(access_view=AccessView.JOBS, user=user)
        can_change = can_view and manager.is_authorized_pool(method="PUT", user=user)
        teams = None
        if conf.getboolean("core", "multi_team", fallback=False):
            teams = frozenset(manager.get_authorized_teams(user=user)) if can_view is True else frozenset()
        # Nothing but a plain yes is one.
        return AdminUser(str(user.get_name()), can_view is True, can_change is True, teams)

    # Some auth managers ask a database or another server.
    return await run_in_threadpool(decide)
