"""Imports and initialises, once, what every task process needs, so that a forked child finds it done.

Each step is guarded: what a runtime does not have is left for the tasks to miss, or not. Only without the Task SDK's
supervisor itself nothing can run.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import importlib
import importlib.metadata
import inspect
import os
import platform
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from . import memory
from .outcome import describe
from .waking import as_default_selector
from .wire import Versions


class UnusableRuntime(Exception):
    """This Python cannot run tasks. The message is one sentence that says why and how to mend it."""


def steps() -> Iterator[None]:
    """Warm up, in steps of at most some tenths of a second; between two the caller may do something else.

    :raises UnusableRuntime: when there is no working Task SDK.
    """
    # What is loaded stays. Looking through it again and again for garbage takes a tenth of the time.
    gc.disable()
    try:
        importlib.import_module("airflow.sdk")
        yield
        importlib.import_module("airflow.sdk.api.client")
        yield
        with as_default_selector():
            importlib.import_module("airflow.sdk.execution_time.supervisor")
        yield
        importlib.import_module("airflow.sdk.execution_time.task_runner")
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "airflow":
            raise UnusableRuntime(
                f"the task runtime {sys.executable} does not start ({describe(error)}): a package that the Task SDK "
                "needs is missing there"
            ) from None
        raise UnusableRuntime(
            f"the task runtime {sys.executable} has no Airflow Task SDK (no module {error.name!r}): install "
            "apache-airflow-task-sdk there, or let [runner] python name the interpreter that has it"
        ) from None
    except Exception as error:  # noqa: BLE001 -- imports run code of Airflow, of its configuration, of plugins
        raise UnusableRuntime(
            f"the task runtime {sys.executable} does not start ({describe(error)}): check its Airflow installation "
            "and the AIRFLOW__ settings under [runner] env"
        ) from None
    for name in _MODULES:
        _guarded(functools.partial(importlib.import_module, name))
        yield
    for prepare in _PREPARATIONS:
        _guarded(prepare)
        yield


def freeze() -> None:
    """Take all that exists now out of garbage collection, so that collecting in a child copies none of its pages."""
    gc.collect()
    gc.freeze()
    gc.enable()
    memory.give_back()


def versions() -> Versions:
    """Return what this runtime consists of."""
    return Versions(
        python=platform.python_version(),
        task_sdk=_version("apache-airflow-task-sdk") or "unknown",
        airflow=_version("apache-airflow-core") or _version("apache-airflow"),
    )


def count_threads() -> int:
    """Return how many threads this process has, those of libraries included."""
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208 -- only their number matters


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _guarded(step: Callable[[], object]) -> None:
    # What fails here fails again in the task that needs it, and is told there, in its log.
    with contextlib.suppress(Exception):
        step()


_MODULES = (
    "airflow.sdk.execution_time.callback_supervisor",
    "airflow.sdk.definitions.asset.metadata",
    "airflow.version",
    "jinja2.ext",
    "airflow.dag_processing.bundles.manager",
    "airflow.dag_processing.bundles.local",
    "airflow.dag_processing.dagbag",
    "airflow.models.dagbag",
    "airflow.serialization.serialized_objects",
    "airflow.sdk.execution_time.secrets.execution_api",
    "airflow.secrets.environment_variables",
    "airflow.providers.standard.operators.bash",
    "airflow.providers.standard.operators.python",
    "airflow.providers.standard.operators.empty",
    "airflow.providers.standard.decorators.bash",
    "airflow.providers.standard.decorators.python",
    "airflow.providers.standard.decorators.sensor",
    "airflow.providers.standard.sensors.python",
    "airflow.providers.standard.sensors.time_delta",
    "encodings.idna",
    "setproctitle",
    "multiprocessing.connection",
    "getpass",
)


def _authoring() -> None:
    # What a Dag file imports from airflow.sdk is loaded on first use only.
    module = importlib.import_module("airflow.sdk")
    for name in module.__all__:
        _guarded(functools.partial(getattr, module, name))


def configure_logging(output: TextIO) -> None:
    """Make the SDK's loggers write to a stream."""
    configure = importlib.import_module("airflow.sdk.log").configure_logging
    options = {
        "output": output,
        "colored_console_log": False,
        # A logger that was used here would go on writing here from within the task.
        "cache_logger_on_first_use": False,
    }
    known = inspect.signature(getattr(configure, "__wrapped__", configure)).parameters
    configure(**{name: value for name, value in options.items() if name in known})


def _logging() -> None:
    # Unbuffered by lines and bound to descriptor 2, which is the job's own log in every child.
    configure_logging(sys.stderr)


def _client() -> None:
    module = importlib.import_module("airflow.sdk.api.client")
    # Reading the certificates costs more than the rest of a client together; the SDK keeps the context.
    module.Client(base_url="http://localhost", token="").close()
    module.get_hostname()
    module.getuser()


def _plugins() -> None:
    importlib.import_module("airflow.sdk.plugins_manager")


def _listeners() -> None:
    importlib.import_module("airflow.sdk.listener").get_listener_manager()


def _macros() -> None:
    importlib.import_module("airflow.sdk.plugins_manager").integrate_macros_plugins()


def _coordinators() -> None:
    importlib.import_module("airflow.sdk.execution_time.coordinator").get_coordinator_manager()


def _remote_logging() -> None:
    importlib.import_module("airflow.sdk.log").load_remote_log_handler()


def _secrets() -> None:
    importlib.import_module("airflow.sdk.execution_time.supervisor").ensure_secrets_backend_loaded()


def _bundles() -> None:
    importlib.import_module("airflow.dag_processing.bundles.manager").DagBundlesManager()


def _messages() -> None:
    # A task's process builds two validators of the same messages anew, and touches each model's memory for it.
    module: Any = importlib.import_module("airflow.sdk.execution_time.comms")
    of_messages, make = module.ToTask, module.TypeAdapter
    adapter = make(of_messages)
    module.TypeAdapter = lambda kind, *options, **named: (
        adapter if kind is of_messages and not options and not named else make(kind, *options, **named)
    )


def _rehearsal() -> None:
    # The first Dag of a process fills caches that all others find filled: of abstract classes, of decorators, of Jinja.
    sdk = importlib.import_module("airflow.sdk")
    with sdk.DAG("rehearsal") as dag:
        step = sdk.task(_nothing)()
    dag.get_template_env()
    copy.copy(step.operator)


def _nothing() -> None:
    pass


_PREPARATIONS: tuple[Callable[[], Any], ...] = (
    _authoring,
    _logging,
    _client,
    _plugins,
    _listeners,
    _macros,
    _coordinators,
    _remote_logging,
    _secrets,
    _bundles,
    _messages,
    _rehearsal,
)
