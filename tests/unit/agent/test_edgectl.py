"""edgectl against a real daemon process: without a server, but with a service manager that listens."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from airflow_edge_agent import __version__
from airflow_edge_agent.adapters.credential import read_credential
from airflow_edge_agent.adapters.keys import public_key
from airflow_edge_agent.ctl.client import SYSTEM_SOCKET, find_socket
from airflow_edge_agent.ctl.rehearsal import hindrance
from airflow_edge_agent.protocol.enrolment import EnrollReply
from fakes.credentials import write_credential_file

SECONDS = 30.0
TOKEN = "eaj_0123456789abcdef_" + "s" * 43
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")


class Site:
    """A daemon of its own below a short path, which every user may reach."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "agent.toml"
        self.credential = root / "state" / "credential"
        self.socket = root / "c.sock"
        self.log = root / "log"
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(str(root / "n.sock"))
        self.manager.settimeout(0)
        self.heard: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.environment = {n: v for n, v in os.environ.items() if not n.startswith(("EDGE_AGENT_", "SUDO_"))}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.configure()

    def configure(self, more: str = "", *, enrolled: bool = True, operators: str = "nobody-at-all") -> None:
        server = f'server_url = "http://127.0.0.1:{self.port}"\n' if enrolled else ""
        self.config.write_text(
            f'{server}name = "edge-1"\nallow_root = true\nstate_dir = "{self.root}/state"\n'
            f'runtime_dir = "{self.root}/run"\nqueues = ["default"]\nconcurrency = 3\n{more}\n'
            f'[runner]\npython = "{sys.executable}"\n[control]\nsocket = "{self.socket}"\n'
            f'operator_group = "{operators}"\nread_group = "nogroup"\n'
        )

    def enroll(self) -> None:
        write_credential_file(self.credential)

    def start(self, *, watchdog_seconds: float | None = None, **variables: str) -> None:
        environment = self.environment | variables | {"NOTIFY_SOCKET": str(self.root / "n.sock")}
        if watchdog_seconds is not None:
            environment["WATCHDOG_USEC"] = str(int(watchdog_seconds * 1_000_000))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "airflow_edge_agent.main", "run", "--config", str(self.config)],
                env=environment,
                stdout=log,
                stderr=log,
            )
        self.wait_for(lambda: self.told("READY=1"))

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(SECONDS)
        self.process = None
        return code

    def told(self, words: str) -> list[str]:
        """Return what the service manager has been told with these words in it."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.heard.append(self.manager.recv(8_192).decode())
        return [message for message in self.heard if words in message]

    def said(self) -> str:
        return self.log.read_text()

    def wait_for(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert self.process is None or self.process.poll() is None or not self.told("READY"), self.said()
            assert time.monotonic() < deadline, f"{self.said()}\n{self.heard}"
            time.sleep(0.02)

    def ctl(self, *arguments: str, stdin: str = "", code: int = 0, pass_fds: tuple[int, ...] = ()) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "airflow_edge_agent.ctl.main", "--config", str(self.config), *arguments],
            env=self.environment,
            input=stdin,
            pass_fds=pass_fds,
            capture_output=True,
            text=True,
            timeout=SECONDS * 2,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def status(self, code: int = 2) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ctl("status", "--json", code=code))
        return found

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.manager.close()


@pytest.fixture
def site() -> Iterator[Site]:
    root = Path(tempfile.mkdtemp(prefix="edgectl-"))
    root.chmod(0o755)
    site = Site(root)
    yield site
    site.close()
    shutil.rmtree(root)


def test_without_a_daemon(site: Site) -> None:
    assert "does not run" in site.ctl("status", code=1)
    assert json.loads(site.ctl("status", "--json", code=1))["health"] == "down"
    site.ctl("status", "--wait", "down")
    assert "not connected within" in site.ctl("status", "--wait", "connected", "--timeout", "1s", code=1)
    for command in (["jobs"], ["drain"], ["maintenance", "on"], ["queues"], ["version", "--daemon"]):
        assert "does not run" in site.ctl(*command, code=1)
    assert site.ctl("version") == f"edgectl {__version__}\n"


def test_usage(site: Site) -> None:
    for words in (["dance"], ["maintenance"], ["maintenance", "on", "--for", "soon"], ["concurrency", "0"], []):
        assert "usage:" in site.ctl(*words, code=64)
    for words in (["--help"], ["status", "--help"], ["maintenance", "on", "--help"], ["enroll", "--help"]):
        text = site.ctl(*words)
        for code in (0, 1, 2, 3, 64, 70, 78):
            assert f"  {code} " in text


class Gatekeeper(BaseHTTPRequestHandler):
    """The enrolment of a server, as far as edgectl sees it."""

    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, GatekeeperServer)
        body = json.loads(self.rfile.read(int(self.headers["content-length"])) or "{}")
        server.seen.append((self.headers.get("authorization"), body))
        if server.silent and body:
            self.close_connection = True
            return
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            self.answer(401, b"", ("WWW-Authenticate", f'Bearer realm="edge-agents", time="{time.time():.0f}"'))
        elif not body:
            self.answer(400, json.dumps({"error": "no request for enrolment: name"}).encode())
        elif server.refusal is not None:
            self.answer(403, json.dumps({"error": server.refusal}).encode())
        else:
            reply = EnrollReply(
                credential_id="fedcba9876543210",
                name=body["name"],
                queues=["press"],
                team="plant",
                server_version="1",
                airflow_version="3.3.2",
            )
            self.answer(200, reply.model_dump_json().encode())

    def answer(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


class GatekeeperServer(ThreadingHTTPServer):
    """Answers until the end of the test."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Gatekeeper)
        self.seen: list[tuple[str | None, dict[str, Any]]] = []
        self.refusal: str | None = None
        self.silent = False
        """Whether who wants to be enrolled gets no answer."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def gatekeeper() -> Iterator[GatekeeperServer]:
    with GatekeeperServer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_enrolment_of_an_agent_that_waits_for_it(site: Site, gatekeeper: GatekeeperServer) -> None:
    site.configure(enrolled=False)
    site.start()
    assert "not enrolled" in site.told("READY=1")[0]
    assert site.status()["enrolled"] is False
    assert "which server" in site.ctl("enroll", stdin=TOKEN, code=64)
    text = site.ctl("enroll", gatekeeper.url, "--name", "press-07", stdin=TOKEN + "\n")
    assert TOKEN not in text
    assert "It may serve the queues press, for team plant, and nothing else." in text
    # The server was looked at before the token was shown to it.
    assert [header for header, _ in gatekeeper.seen[:2]] == [None, f"Bearer {TOKEN}"]
    asked = gatekeeper.seen[1][1]
    credential = read_credential(site.credential)
    assert stat.S_IMODE(site.credential.stat().st_mode) == 0o600
    assert public_key(credential.private_key).hex() == asked["public_key"]
    private = site.credential.read_text().strip().split("_", 2)[2]
    assert private not in json.dumps(gatekeeper.seen) + text + site.said() + str(site.told(""))
    found = site.status()
    assert (found["enrolled"], found["server_url"], found["name"]) == (True, gatekeeper.url, "press-07")
    assert found["agent_id"] == asked["agent_id"]
    assert not (site.root / "conf.d" / "00-enrolment.toml").read_text().count("ea")
    assert site.stop() == 0


@pytest.mark.parametrize("way", ["file", "descriptor", "systemd"])
def test_ways_to_give_the_token(site: Site, gatekeeper: GatekeeperServer, way: str) -> None:
    path = write_credential_file(site.root / "given" / "join", TOKEN)
    if way == "file":
        text = site.ctl("enroll", gatekeeper.url, "--token-file", str(path), "--json")
    elif way == "systemd":
        site.environment["CREDENTIALS_DIRECTORY"] = str(path.parent)
        text = site.ctl("enroll", gatekeeper.url, "--token-credential", "join", "--json")
    else:
        read, write = os.pipe()
        os.write(write, TOKEN.encode())
        os.close(write)
        text = site.ctl("enroll", gatekeeper.url, "--token-fd", str(read), "--json", pass_fds=(read,))
        os.close(read)
    told = json.loads(text.splitlines()[0])
    assert (told["name"], told["queues"], told["team"]) == ("edge-1", ["press"], "plant")
    assert read_credential(site.credential).id == "fedcba9876543210"


def test_nothing_is_changed_by_an_enrolment_that_fails(site: Site, gatekeeper: GatekeeperServer) -> None:
    site.enroll()
    before = site.credential.read_bytes()
    nowhere = f"http://127.0.0.1:{site.port}"
    assert "cannot connect" in site.ctl("enroll", nowhere, stdin=TOKEN, code=3)
    assert gatekeeper.seen == []
    assert "no join token" in site.ctl("enroll", gatekeeper.url, stdin="nonsense", code=3)
    wrong = TOKEN.replace("s", "x")
    assert "does not know this join token" in site.ctl("enroll", gatekeeper.url, stdin=wrong, code=3)
    gatekeeper.refusal = "this join token expired"
    text = site.ctl("enroll", gatekeeper.url, stdin=TOKEN, code=3)
    assert "not enrolled: this join token expired" in text
    assert TOKEN not in text
    assert site.credential.read_bytes() == before


def test_a_rehearsal_leaves_no_trace(site: Site, gatekeeper: GatekeeperServer) -> None:
    site.configure(enrolled=False)
    before = sorted(site.root.rglob("*"))
    text = site.ctl("enroll", gatekeeper.url, "--name", "press-07", "--dry-run", stdin=TOKEN)
    drop_in = site.root / "conf.d" / "00-enrolment.toml"
    assert f"{gatekeeper.url} serves agents, and knows this join token." in text
    assert f"{drop_in}: server_url and name" in text
    assert f"{site.credential}: the credential, with a new private key" in text
    assert TOKEN not in text
    told = json.loads(site.ctl("enroll", gatekeeper.url, "--dry-run", "--json", stdin=TOKEN))
    assert (told["server_url"], told["name"]) == (gatekeeper.url, "edge-1")
    assert str(site.credential) in told["writes"]
    assert sorted(site.root.rglob("*")) == before
    assert [body for _, body in gatekeeper.seen] == [{}] * 4, "nobody has asked to be let in"
    wrong = TOKEN.replace("s", "x")
    assert "does not know this join token" in site.ctl("enroll", gatekeeper.url, "--dry-run", stdin=wrong, code=3)
    site.environment["EDGE_AGENT_NAME"] = "lathe"
    text = site.ctl("enroll", gatekeeper.url, "--name", "press-07", "--dry-run", stdin=TOKEN, code=3)
    assert "name is set otherwise in" in text
    assert "EDGE_AGENT_NAME" in text


def test_a_rehearsal_says_what_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 1_000)
    path = tmp_path / "not" / "there" / "credential"
    assert hindrance([(path, "")]) == f"{path}: {tmp_path} cannot be written; try with sudo"


def test_a_lost_answer_is_asked_for_with_the_same_key(site: Site, gatekeeper: GatekeeperServer) -> None:
    kept = site.credential.parent / "enrolling.json"

    def keys() -> list[str]:
        return [body["public_key"] for _, body in gatekeeper.seen if body]

    gatekeeper.silent = True
    for _ in range(2):
        assert TOKEN not in site.ctl("enroll", gatekeeper.url, stdin=TOKEN, code=3)
    assert len(set(keys())) == 1
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert TOKEN.rsplit("_", 1)[1] not in kept.read_text()
    # Another name is another agent, and gets a key of its own. So does who brings another join token.
    site.ctl("enroll", gatekeeper.url, "--name", "press-07", stdin=TOKEN, code=3)
    site.ctl("enroll", gatekeeper.url, stdin=TOKEN.replace("eaj_0", "eaj_1"), code=3)
    assert len(set(keys())) == 3
    # What others have put in its place is not followed, nor used.
    kept.unlink()
    kept.symlink_to(site.config)
    site.ctl("enroll", gatekeeper.url, stdin=TOKEN, code=3)
    assert not kept.is_symlink()
    kept.write_text("[" * 3_000)
    site.ctl("enroll", gatekeeper.url, stdin=TOKEN, code=3)
    assert len(set(keys())) == 5
    gatekeeper.silent = False
    site.ctl("enroll", gatekeeper.url, stdin=TOKEN)
    assert public_key(read_credential(site.credential).private_key).hex() == keys()[-1] == keys()[-2]
    assert not kept.exists()


def test_a_key_that_was_refused_is_not_kept(site: Site, gatekeeper: GatekeeperServer) -> None:
    gatekeeper.refusal = "what it got was revoked or replaced since"
    site.ctl("enroll", gatekeeper.url, stdin=TOKEN, code=3)
    assert sorted(path.name for path in site.credential.parent.iterdir()) == ["identity.json"]


def test_a_token_is_not_used_up_where_nothing_can_be_written(site: Site, gatekeeper: GatekeeperServer) -> None:
    site.configure("")
    config = site.config.read_text().replace(f'state_dir = "{site.root}/state"', 'state_dir = "/proc/nowhere"')
    site.config.write_text(config)
    assert "/proc/nowhere" in site.ctl("enroll", gatekeeper.url, stdin=TOKEN, code=3)
    assert [header for header, _ in gatekeeper.seen] == [None]


def test_a_drop_in_that_wins_over_the_enrolment_is_named(site: Site, gatekeeper: GatekeeperServer) -> None:
    (site.root / "conf.d").mkdir()
    other = site.root / "conf.d" / "site.toml"
    other.write_text('name = "other"\n')
    assert str(other) in site.ctl("enroll", gatekeeper.url, "--name", "press-07", stdin=TOKEN, code=3)
    assert not site.credential.exists()
    assert [header for header, _ in gatekeeper.seen] == [None]


def test_maintenance_survives_restarts_and_kills(site: Site) -> None:
    site.enroll()
    site.start()
    text = site.ctl("maintenance", "on", "--comment", "new disk", "--for", "2h", "--wait")
    assert "takes no new jobs" in text
    before = site.status()["maintenance"]
    assert (before["comment"], before["told_to_server"]) == ("new disk", False)
    assert before["by"] == subprocess.check_output(["id", "-un"], text=True).strip()
    site.wait_for(lambda: "maintenance mode (new disk)" in site.told("STATUS=")[-1])
    assert site.stop() == 0
    site.heard.clear()
    site.start()
    assert site.status()["maintenance"] == before
    assert site.process is not None
    site.process.kill()
    site.process.wait()
    site.heard.clear()
    site.start()
    assert site.status()["maintenance"] == before
    site.ctl("maintenance", "off")
    assert site.status()["maintenance"] is None
    assert "was not in maintenance" in site.ctl("maintenance", "off")


def test_slots_queues_and_drain_at_run_time(site: Site) -> None:
    site.enroll()
    site.start()
    site.ctl("concurrency", "7")
    assert json.loads(site.ctl("queues", "--add", "press", "--remove", "default", "--json")) == ["press"]
    assert "at least one queue" in site.ctl("queues", "--remove", "press", code=3)
    assert "does not serve nothing" in site.ctl("queues", "--remove", "nothing", code=3)
    site.ctl("drain", "--wait")
    found = site.status()
    assert (found["slots_total"], found["queues"], bool(found["drained_by"])) == (7, ["press"], True)
    assert "drained      by" in site.ctl("status", code=2)
    site.ctl("status", "--wait", "drained")
    site.ctl("resume")
    assert site.status()["drained_by"] is None
    assert site.ctl("jobs") == "no jobs\n"
    assert "no job" in site.ctl("logs", "deadbeef", code=3)


def ask_as(site: Site, uid: int, gid: int, request: dict[str, Any]) -> dict[str, Any]:
    """Ask as another user. A fork: that user may not be able to start this Python."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(SECONDS)
                client.connect(str(site.socket))
                client.sendall(json.dumps(request).encode() + b"\n")
                os.write(write, client.makefile("rb").readline())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        found: dict[str, Any] = json.loads(answer.read())
    os.waitpid(pid, 0)
    return found


@needs_root
def test_who_may_do_what(site: Site) -> None:
    site.enroll()
    site.start()
    reader = grp.getgrnam("nogroup").gr_gid
    looks = [{"do": "status"}, {"do": "jobs"}, {"do": "queues"}, {"do": "facts"}]
    changes: list[dict[str, Any]] = [
        {"do": "maintenance", "on": True},
        {"do": "drain"},
        {"do": "resume"},
        {"do": "concurrency", "slots": 1},
        {"do": "set_queues", "add": ["x"]},
        {"do": "reload"},
        {"do": "enroll"},
        {"do": "stopping", "kind": "stop"},
    ]
    stranger = 12_345
    for request in looks:
        assert ask_as(site, stranger, reader, request)["ok"]
        assert ask_as(site, stranger, stranger, request)["error"]["code"] == "permission"
    for request in changes:
        for gid in (reader, stranger):
            assert ask_as(site, stranger, gid, request)["error"]["code"] == "permission"
    site.configure(operators="nogroup")
    site.stop()
    site.heard.clear()
    site.start()
    answer = ask_as(site, stranger, reader, {"do": "maintenance", "on": True, "on_behalf_of": "root"})
    assert answer["status"]["maintenance"]["by"] == f"uid {stranger}", "only root is believed about others"
    assert ask_as(site, stranger, reader, {"do": "stopping", "kind": "stop"})["error"]["code"] == "permission"
    assert ask_as(site, stranger, stranger, {"do": "status"})["error"]["code"] == "permission"


def test_bad_requests_get_an_answer_and_do_no_harm(site: Site) -> None:
    site.enroll()
    site.start()
    for line, code in (
        (b"nonsense", "bad_request"),
        (b"[]", "bad_request"),
        (b'{"do": 7}', "bad_request"),
        (b'{"do": "dance"}', "unknown"),
        (b'{"do": "concurrency", "slots": 0}', "bad_request"),
        (b'{"do": "concurrency", "slots": 2, "more": 1}', "bad_request"),
        (b'{"do": "freeze", "loop": "time", "how": "hang"}', "permission"),
        (b"[" * 50_000, "bad_request"),
        (b"x" * 100_000, "bad_request"),
    ):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(SECONDS)
            client.connect(str(site.socket))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                client.sendall(line + b"\n")
            answer = json.loads(client.makefile().readline())
            assert answer["error"]["code"] == code, line[:40]
    crowd = [socket.socket(socket.AF_UNIX) for _ in range(40)]
    try:
        for client in crowd:
            client.connect(str(site.socket))
        crowd[-1].settimeout(SECONDS)
        assert json.loads(crowd[-1].makefile().readline())["error"]["code"] == "busy"
    finally:
        for client in crowd:
            client.close()
    site.wait_for(lambda: site.status()["health"] == "degraded")
    assert "Traceback" not in site.said()


@pytest.mark.parametrize("home", ["/" + "x" * 300, "/proc/1/root"])
def test_a_home_that_cannot_be_looked_into_is_nobodys(monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    for name in ("EDGE_AGENT_CONTROL__SOCKET", "EDGE_AGENT_RUNTIME_DIR", "EDGE_AGENT_STATE_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    assert find_socket(None, Path("/nowhere/agent.toml")) == SYSTEM_SOCKET


def test_reload(site: Site) -> None:
    site.enroll()
    site.start(EDGE_AGENT_RUNNER__SOCKET=str(site.root / "runner.sock"))
    site.ctl("concurrency", "9")
    site.configure(
        'spool_max_mb = 20\nca_file = "/etc/hostname"\n[drain]\ndeadline_seconds = 3\n[limits]\npids_max = 60\n'
    )
    text = site.ctl("reload")
    assert "in effect now: spool_max_mb, drain, limits" in text
    assert "in effect after a restart: ca_file" in text
    assert site.status()["slots_total"] == 9, "what was changed at run time stays if the file says nothing new"
    site.configure("concurency = 3")
    assert "did you mean 'concurrency'" in site.ctl("reload", code=3)
    site.configure('[runner.env]\nBELL = "\\u0007"\n')
    assert "the variable BELL for tasks holds a control character" in site.ctl("reload", code=3)
    site.configure("[log]\nlevel = 'debug'\n")
    assert site.process is not None
    site.process.send_signal(signal.SIGHUP)
    site.wait_for(lambda: len(site.told("RELOADING=1")) == 4)
    site.wait_for(lambda: len(site.told("READY=1")) == 5)
    assert "keeps the old configuration" in site.said()
    assert site.stop() == 0
    assert site.told("STOPPING=1")


def test_what_a_stop_is_for(site: Site) -> None:
    site.enroll()
    site.start()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(site.socket))
        client.sendall(b'{"do": "stopping", "kind": "restart"}\n')
        assert json.loads(client.makefile().readline())["ok"]
    assert not site.told("STOPPING=1")
    assert site.stop() == 0
    assert "stopping (restart)" in site.said()
    assert not site.socket.exists()


@pytest.mark.parametrize("how", ["hang", "block"])
@needs_root
def test_a_frozen_loop_is_named_and_gives_no_more_signs_of_life(site: Site, how: str) -> None:
    site.enroll()
    site.start(watchdog_seconds=2, EDGE_AGENT_DEBUG="1")
    site.wait_for(lambda: len(site.told("WATCHDOG=1")) >= 2)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(site.socket))
        client.sendall(json.dumps({"do": "freeze", "loop": "status", "how": how}).encode() + b"\n")
        client.settimeout(SECONDS)
        assert json.loads(client.makefile().readline())["ok"]
    if how == "hang":
        # It may be quiet for a minute: what is seen here is that the daemon goes on serving, and that nobody is misled.
        assert site.status()["health"] == "degraded"
        return
    site.wait_for(lambda: "the status loop is stuck and blocks the event loop" in site.said())
    before = len(site.told("WATCHDOG=1"))
    time.sleep(2)
    assert len(site.told("WATCHDOG=1")) == before


def test_children_know_nothing_of_the_service_manager(site: Site) -> None:
    site.enroll()
    shown = site.root / "shown"
    command = f"import json, os; open({str(shown)!r}, 'w').write(json.dumps(dict(os.environ))); print(1)"
    site.configure(
        f"[custom_metrics.env]\ncommand = {json.dumps([sys.executable, '-c', command])}\ninterval_seconds = 5\n"
    )
    site.start(watchdog_seconds=60)
    site.wait_for(lambda: shown.exists() and shown.read_text().endswith("}"))
    variables = json.loads(shown.read_text())
    assert not [name for name in variables if name.startswith(("NOTIFY", "WATCHDOG", "EDGE_AGENT"))]


def test_doctor_and_bugreport_without_a_daemon(site: Site) -> None:
    site.enroll()
    site.config.write_text(site.config.read_text() + '[runner.env]\nDB_PASSWORD = "hunter2"\n')
    checks = {check["name"]: check for check in json.loads(site.ctl("doctor", "--json", code=1))}
    assert checks["daemon"]["verdict"] == "fail"
    assert checks["TCP"]["verdict"] == "fail"
    assert checks["task runtime"]["verdict"] == "ok"
    assert all(check["remedy"] for check in checks.values() if check["verdict"] in ("warn", "fail"))
    report = site.root / "report.tgz"
    site.ctl("bugreport", "--output", str(report))
    assert stat.S_IMODE(report.stat().st_mode) == 0o600
    assert "File exists" in site.ctl("bugreport", "--output", str(report), code=3)
    with tarfile.open(report) as archive:
        texts = [file.read().decode() for member in archive if (file := archive.extractfile(member))]
    assert len(texts) == 5
    for secret in ("hunter2", "s" * 43, "127.0.0.1"):
        assert secret not in "".join(text for text in texts if '"remedy"' not in text)


def test_the_configuration_commands(site: Site) -> None:
    assert site.ctl("config", "check", "--quiet") == ""
    assert f'state_dir = "{site.root}/state"' in site.ctl("config", "show")
    shown = {entry["name"]: entry for entry in json.loads(site.ctl("config", "show", "--json"))}
    assert shown["concurrency"] == {"name": "concurrency", "value": 3, "origin": str(site.config)}
    site.config.write_text('server_url = "https://x"\nconcurency = 2')
    assert "did you mean 'concurrency'" in site.ctl("config", "check", code=78)


def test_status_is_quick_and_loads_little() -> None:
    script = (
        "import sys, airflow_edge_agent.ctl.main, airflow_edge_agent.ctl.commands\n"
        "print([m for m in ('pydantic', 'httpx', 'asyncio', 'structlog', 'psutil') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
