"""``airflow edge-agents api-server``: the agent API as a process of its own.

A fault ends with one line on standard error and a status that is not 0.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.configuration import conf
from airflow.exceptions import AirflowConfigException
from airflow.utils import cli as cli_utils
from airflow.utils.providers_configuration_loader import providers_configuration_loaded

from airflow_edge_agent.protocol.frames import MAX_BATCH_BYTES
from airflow_edge_server import compat, config
from airflow_edge_server.console import fail, note
from airflow_edge_server.descriptors import make_room

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

APP = "airflow_edge_server.asgi:app"

_KEEP_ALIVE_SECONDS = 120
"""Longer than proxies keep a connection that nobody uses (nginx: 60), so that they never send into a closed one."""

_STOP_SECONDS = 15
"""How long requests may go on after a signal. Waiting ones are answered at once."""

_SOCKET_MODE = 0o660
_BACKLOG = 2_048
_CERT_REQS = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


@cli_utils.action_cli(check_db=False)  # type: ignore[untyped-decorator]  # Airflow is not followed by mypy
@providers_configuration_loaded  # type: ignore[untyped-decorator]  # as above
def api_server(args: Namespace) -> None:
    """Serve the agent API until a signal ends it."""
    try:
        settings = config.load()
        compat.check_signing_key()
    except AirflowConfigException as error:
        fail(str(error))
    options: dict[str, Any] = {
        "workers": args.workers,
        "proxy_headers": args.proxy_headers,
        "forwarded_allow_ips": _trusted(args),
        "timeout_keep_alive": _KEEP_ALIVE_SECONDS,
        "timeout_graceful_shutdown": _STOP_SECONDS,
        "access_log": False,
        **_websockets(),
        "log_level": conf.get("logging", "uvicorn_logging_level", fallback="info").lower(),
        # Airflow's own logging stays as it is.
        "log_config": None,
        **_tls(args),
    }
    if (problem := make_room(settings.max_connections)) is not None:
        note(f"warning: {problem}")
    import uvicorn  # noqa: PLC0415  heavy, and only for this command

    if args.uds is None:
        note(f"The agent API is served on {args.host} port {args.port}.")
        uvicorn.run(APP, host=args.host, port=args.port, **options)
        return
    with _listening(Path(args.uds)) as listener:
        note(f"The agent API is served on {args.uds}.")
        uvicorn.run(APP, fd=listener.fileno(), **options)


def _websockets() -> dict[str, Any]:
    from uvicorn.config import WS_PROTOCOLS  # noqa: PLC0415  heavy, and only for this command

    # The one that takes least memory for a connection. A uvicorn without it chooses itself.
    kind = "websockets-sansio"
    return {"ws_max_size": MAX_BATCH_BYTES, "ws": kind if kind in WS_PROTOCOLS else "auto"}


def _trusted(args: Namespace) -> str:
    """Return whose word is taken for where a request comes from."""
    if args.forwarded_allow_ips is not None:
        if not args.proxy_headers:
            fail("--forwarded-allow-ips goes with --proxy-headers only")
        return str(args.forwarded_allow_ips)
    # Whoever may connect to the socket is the proxy.
    return "*" if args.uds is not None else os.environ.get("FORWARDED_ALLOW_IPS", "127.0.0.1")


def _tls(args: Namespace) -> dict[str, Any]:
    files = {"--ssl-cert": args.ssl_cert, "--ssl-key": args.ssl_key, "--ssl-ca-file": args.ssl_ca_file}
    if bool(args.ssl_cert) != bool(args.ssl_key):
        fail("--ssl-cert and --ssl-key go together")
    if not args.ssl_cert:
        return {}
    for option, file in files.items():
        if file and not Path(file).is_file():
            fail(f"{option}: there is no file {file}")
    return {
        "ssl_certfile": args.ssl_cert,
        "ssl_keyfile": args.ssl_key,
        "ssl_ca_certs": args.ssl_ca_file or None,
        "ssl_cert_reqs": _CERT_REQS[args.ssl_cert_reqs or "none"],
    }


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """Listen on a unix socket for owner and group alone, and remove it in the end."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear(path)
        listener.bind(str(path))
        path.chmod(_SOCKET_MODE)
        ours = path.stat().st_ino
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        fail(f"cannot listen on {path}: {error.strerror or error}")
    try:
        yield listener
    finally:
        listener.close()
        with contextlib.suppress(OSError):
            # Another process may have taken the place meanwhile.
            if path.stat().st_ino == ours:
                path.unlink()


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens on any more.

    :raises OSError: when somebody does, or it is no socket.
    """
    try:
        found = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found):
        raise FileExistsError(errno.EEXIST, "there is something that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        try:
            trial.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(errno.EADDRINUSE, "another process listens there")
