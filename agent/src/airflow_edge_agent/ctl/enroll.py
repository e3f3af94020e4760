"""``edgectl enroll``: a join token is exchanged for a credential of this machine's own."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import os
import pwd
import re
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import httpx

from airflow_edge_agent import __version__
from airflow_edge_agent.adapters.credential import Credential, is_ours, possession
from airflow_edge_agent.adapters.faults import status_fault
from airflow_edge_agent.adapters.files import agent_identity, boot_identity, sync_folder
from airflow_edge_agent.adapters.http import translate
from airflow_edge_agent.adapters.keys import KEY_BYTES, KeyFault, new_private_key
from airflow_edge_agent.adapters.network import proxy_for
from airflow_edge_agent.configuration import DEFAULT_CONFIG, ConfigError, Loaded, load
from airflow_edge_agent.ctl import rehearsal
from airflow_edge_agent.ctl.client import Client, DaemonDown, Refused, find_socket
from airflow_edge_agent.ctl.main import BAD_CONFIG, DOWN, OK, REFUSED, USAGE
from airflow_edge_agent.ctl.terminal import complain, out, plain
from airflow_edge_agent.operations import network_of
from airflow_edge_agent.ports import StoreError, TransportError
from airflow_edge_agent.protocol import API_PREFIX, ENROLL_PATH
from airflow_edge_agent.protocol.enrolment import EVERY_QUEUE, EnrollReply, EnrollRequest
from airflow_edge_agent.settings import Settings

AGENT_USER = "edge-agent"
DROP_IN = "00-enrolment.toml"
"""Read first of all drop-ins: whoever writes others wins."""

UNANSWERED = "enrolling.json"
"""In the state directory: the key with which we have asked to be enrolled, until there is an answer."""

TOKEN_MAX_BYTES = 4_096
SECONDS = 20.0

_UNKNOWN = "the server does not know this join token; is it another server's?"
_TOKEN = re.compile(r"eaj_[0-9a-f]{16}_[A-Za-z0-9_-]{43}")


class EnrolError(Exception):
    """It cannot be done. The message is one line for the operator."""


def enroll(arguments: argparse.Namespace) -> int:
    """Become an agent of the server, and have the running daemon take that up."""
    overrides: dict[str, Any] = {
        key: value for key, value in (("server_url", arguments.url), ("name", arguments.name)) if value is not None
    }
    try:
        loaded = load(arguments.config, overrides, unenrolled=True)
    except ConfigError as error:
        for line in str(error).splitlines():
            complain(plain(line))
        return BAD_CONFIG
    if not loaded.enrolled:
        complain("which server? edgectl enroll https://..., or set server_url in agent.toml")
        return USAGE
    settings = loaded.settings
    if arguments.dry_run:
        return _rehearse(arguments, loaded, overrides)
    try:
        with _Server(settings) as server:
            server.check()
            token = _read_token(arguments)
            owner = _prepare(settings.state_dir)
            with _drop_in(arguments, overrides):
                agent_id = agent_identity(settings.state_dir)
                _give(settings.state_dir / "identity.json", owner)
                attempt = _Attempt(settings, token, owner)
                reply = server.exchange(token, attempt, settings.name, agent_id)
        credential = Credential(reply.credential_id, attempt.private_key)
        _write(settings.credential_file, credential.text(), mode=0o600, owner=owner)
        attempt.answered()
    except (EnrolError, KeyFault, StoreError, TransportError) as error:
        complain(plain(str(error)))
        return REFUSED
    if arguments.json:
        out(reply.model_dump_json(exclude={"server_version", "airflow_version", "replaced"}))
    else:
        _tell(reply)
    return _take_up(Client(find_socket(arguments.socket, arguments.config)), say=complain if arguments.json else out)


def _rehearse(arguments: argparse.Namespace, loaded: Loaded, overrides: dict[str, Any]) -> int:
    """Look whether it would succeed, as far as that can be seen without using the join token up or writing anything."""
    config, settings = arguments.config or DEFAULT_CONFIG, loaded.settings
    drop_in = config.parent / "conf.d" / DROP_IN
    files = rehearsal.writes(loaded, overrides, drop_in)
    try:
        with _Server(settings) as server:
            server.check()
            server.knows(_read_token(arguments))
        present = load(arguments.config, {}, unenrolled=True)
        fault = rehearsal.overruled(present, overrides, config, drop_in) or rehearsal.hindrance(files)
    except (EnrolError, TransportError) as error:
        fault = str(error)
    if fault is not None:
        complain(plain(fault))
        return REFUSED
    if arguments.json:
        told = {"server_url": settings.server_url, "name": settings.name, "writes": [str(path) for path, _ in files]}
        out(json.dumps(told))
        return OK
    out(plain(f"{settings.server_url} serves agents, and knows this join token."))
    out(plain(f"This machine would become the agent {settings.name}, and this would be written:"))
    for path, purpose in files:
        out(plain(f"  {path}: {purpose}"))
    out("Nothing has been written, and the join token is not used up.")
    return OK


def _tell(reply: EnrollReply) -> None:
    queues = "every queue" if EVERY_QUEUE in reply.queues else f"the queues {', '.join(reply.queues)}"
    out(plain(f"This machine is the agent {reply.name} of Airflow {reply.airflow_version}."))
    out(plain(f"It may serve {queues}{f', for team {reply.team}' if reply.team else ''}, and nothing else."))
    if reply.expires_at is not None:
        out(f"Its credential is valid until {reply.expires_at:%Y-%m-%d}, and is replaced by itself before.")
    if reply.replaced:
        out("The credentials that this agent had before are not valid any more.")


class _Attempt:
    """One try to be enrolled. Its key is kept until there is an answer.

    The server may have let us in, and its answer may be lost. Asked again with the same key it gives the same answer;
    another key would need another use of the join token.

    :raises EnrolError: the key cannot be written.
    """

    def __init__(self, settings: Settings, token: str, owner: tuple[int, int] | None) -> None:
        self._path = settings.state_dir / UNANSWERED
        # What the key was meant for. The middle of a join token is its id, and no secret.
        self._purpose = {"server_url": settings.server_url, "name": settings.name, "join_token": token.split("_")[1]}
        known = self._read()
        if known is None:
            self.private_key = new_private_key()
            content = self._purpose | {"private_key": self.private_key.hex()}
            _write(self._path, json.dumps(content) + "\n", mode=0o600, owner=owner)
        else:
            self.private_key = known

    def answered(self) -> None:
        """Forget the key."""
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _read(self) -> bytes | None:
        """Return the key of an attempt for the same purpose; ``None``: there is none."""
        try:
            # The folder is the agent's own, and we may be root: no link, and no more than we have written.
            with os.fdopen(os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                found = json.loads(file.read(TOKEN_MAX_BYTES))
            key = bytes.fromhex(found.pop("private_key"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        return key if found == self._purpose and len(key) == KEY_BYTES else None


class _Server:
    """The server, before we have a credential for it."""

    def __init__(self, settings: Settings) -> None:
        network = network_of(settings)
        network.check(settings.server_url)
        self._url = f"{settings.server_url}{API_PREFIX}{ENROLL_PATH}"
        self._client = httpx.Client(
            verify=network.tls if self._url.startswith("https:") else False,
            trust_env=False,
            proxy=proxy_for(settings.server_url),
            headers={"user-agent": f"airflow-edge-agent/{__version__}"},
            timeout=SECONDS,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def check(self) -> None:
        """Look whether the agent API is there, without showing it anything.

        :raises TransportError: it is not, or cannot be reached.
        """
        answer = self._post(None, None)
        if answer.status_code != httpx.codes.UNAUTHORIZED or not is_ours(answer.headers.get("www-authenticate")):
            raise status_fault(self._url, answer.status_code, answer.reason_phrase, location=_location(answer))

    def knows(self, token: str) -> None:
        """Ask whether there is such a join token, by a request that is none for enrolment.

        :raises EnrolError: there is not.
        :raises TransportError: there is no answer, or none of the agent API's.
        """
        answer = self._post(token, "{}")
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise EnrolError(f"{self._url}: {_UNKNOWN}")
        if answer.status_code != httpx.codes.BAD_REQUEST:
            raise status_fault(self._url, answer.status_code, answer.reason_phrase)

    def exchange(self, token: str, attempt: _Attempt, name: str, agent_id: str) -> EnrollReply:
        """Exchange the join token.

        :raises EnrolError: the server does not let us in.
        :raises TransportError: there is no answer, or none of the agent API's.
        """
        public, signature = possession(attempt.private_key, name)
        request = EnrollRequest(
            name=name,
            public_key=public,
            signature=signature,
            agent_id=agent_id,
            boot_id=boot_identity(),
            hostname=socket.gethostname()[:200],
        )
        answer = self._post(token, request.model_dump_json())
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise EnrolError(f"{self._url}: {_UNKNOWN}")
        try:
            if answer.is_success:
                return EnrollReply.model_validate_json(answer.content)
            reason = str(answer.json()["error"])[:500]
        except (ValueError, KeyError, TypeError):
            raise status_fault(self._url, answer.status_code, answer.reason_phrase) from None
        if answer.status_code == httpx.codes.FORBIDDEN:
            # With this key it will not let us in later either.
            attempt.answered()
        raise EnrolError(f"{self._url}: not enrolled: {reason}")

    def _post(self, token: str | None, content: str | None) -> httpx.Response:
        headers = {"content-type": "application/json"} | ({} if token is None else {"authorization": f"Bearer {token}"})
        try:
            return self._client.post(self._url, content=content, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise translate(error, self._url) from None


def _location(answer: httpx.Response) -> str | None:
    return answer.headers.get("location", "elsewhere") if answer.is_redirect else None


@contextlib.contextmanager
def _drop_in(arguments: argparse.Namespace, overrides: dict[str, Any]) -> Iterator[None]:
    """Write what was given on the command line; if what follows fails, the file is as before."""
    if not overrides:
        yield
        return
    path = (arguments.config or DEFAULT_CONFIG).parent / "conf.d" / DROP_IN
    before = path.read_text(encoding="utf-8") if path.exists() else None
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in overrides.items()]
    _write(path, "# Written by edgectl enroll.\n" + "".join(lines), mode=0o644)
    try:
        _check_effect(arguments, overrides)
        yield
    except BaseException:
        if before is None:
            path.unlink(missing_ok=True)
        else:
            _write(path, before, mode=0o644)
        raise


def _check_effect(arguments: argparse.Namespace, overrides: dict[str, Any]) -> None:
    loaded = load(arguments.config, {}, unenrolled=True)
    for name, value in overrides.items():
        if getattr(loaded.settings, name) != (value.rstrip("/") if name == "server_url" else value):
            origin = loaded.origins.get((name,), "default")
            raise EnrolError(f"{name} is set otherwise in {origin}, which wins; change it there")


def _take_up(client: Client, *, say: Callable[[str], None]) -> int:
    try:
        answer = client.ask("enroll")
    except DaemonDown:
        say("The agent does not run yet: systemctl enable --now edge-agent")
        return OK
    except Refused as refusal:
        complain(f"the running agent was not told: {refusal}; restart it")
        return REFUSED
    if not answer.get("reloaded"):
        complain(f"the agent keeps its old configuration: {answer.get('fault')}")
        return REFUSED
    if answer.get("enrolment_fault"):
        complain(f"the agent cannot take it up: {answer['enrolment_fault']}")
        return DOWN
    if answer.get("need_a_restart"):
        complain(f"in effect after a restart of the agent: {', '.join(answer['need_a_restart'])}")
    say("The running agent has taken it up: edgectl status --wait connected --timeout 30s")
    return OK


def _read_token(arguments: argparse.Namespace) -> str:
    path: Path | None = arguments.token_file
    if arguments.token_credential is not None:
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if folder is None or "/" in arguments.token_credential:
            raise EnrolError("--token-credential is for units with LoadCredential=: there is no $CREDENTIALS_DIRECTORY")
        path = Path(folder) / arguments.token_credential
    try:
        if arguments.token_fd is not None:
            with os.fdopen(arguments.token_fd, "rb") as file:
                data = file.read(TOKEN_MAX_BYTES + 1)
        elif path is not None and str(path) != "-":
            with path.open("rb") as file:
                data = file.read(TOKEN_MAX_BYTES + 1)
        elif sys.stdin.isatty() and path is None:
            data = getpass.getpass("Join token (eaj_...): ").encode()
        else:
            data = sys.stdin.buffer.read(TOKEN_MAX_BYTES + 1)
    except OSError as error:
        raise EnrolError(f"{path or f'file descriptor {arguments.token_fd}'}: {error.strerror}") from None
    token = data.decode("ascii", errors="replace").strip()
    if len(data) > TOKEN_MAX_BYTES or _TOKEN.fullmatch(token) is None:
        raise EnrolError("that is no join token: it is one line that begins with 'eaj_'")
    return token


def _prepare(state_dir: Path) -> tuple[int, int] | None:
    """Make sure that the credential can be written; return whose it is to be, if not ours.

    :raises EnrolError: it cannot.
    """
    try:
        new = not state_dir.exists()
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = _agent_user(state_dir)
        if new:
            _give(state_dir, owner)
        with tempfile.TemporaryFile(dir=state_dir):
            return owner
    except OSError as error:
        raise EnrolError(f"{state_dir}: {error.strerror}{_hint(error)}") from None


def _agent_user(state_dir: Path) -> tuple[int, int] | None:
    """Return whom the agent runs as, where we are root: the owner of its folder, else the system's user for it."""
    if os.geteuid() != 0:
        return None
    found = state_dir.stat()
    if found.st_uid != 0:
        return found.st_uid, found.st_gid
    try:
        user = pwd.getpwnam(AGENT_USER)
    except KeyError:
        return None
    return user.pw_uid, user.pw_gid


def _give(path: Path, owner: tuple[int, int] | None) -> None:
    if owner is not None:
        os.chown(path, *owner, follow_symlinks=False)


def _write(path: Path, content: str, *, mode: int, owner: tuple[int, int] | None = None) -> None:
    """Write a file that is either as before or complete.

    :raises EnrolError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise EnrolError(f"{path}: {error.strerror}{_hint(error)}") from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)
            if owner is not None:
                os.fchown(file.fileno(), *owner)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        # A power cut must not bring back what was there before: the server may know the new key only.
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise EnrolError(f"{path}: {error.strerror}") from None


def _hint(error: OSError) -> str:
    return "; try with sudo" if isinstance(error, PermissionError) and os.geteuid() else ""
