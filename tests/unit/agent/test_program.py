"""The program from outside: its exit codes, what it says, and what it does not load."""

from __future__ import annotations

import contextlib
import io
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from airflow_edge_agent import __version__
from airflow_edge_agent.runtime.logging import configure_logging
from fakes.credentials import SECRET, write_credential_file

PROGRAM = [sys.executable, "-m", "airflow_edge_agent.main"]
SECONDS = 30


@pytest.fixture
def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("EDGE_AGENT_")}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    write_credential_file(tmp_path / "state" / "credential")
    path = tmp_path / "agent.toml"
    path.write_text(
        f'server_url = "http://127.0.0.1:{port}"\nallow_root = true\nname = "edge-1"\n'
        f'state_dir = "{tmp_path}/state"\nruntime_dir = "{tmp_path}/state/r"\n[runner]\npython = "{sys.executable}"\n'
    )
    return path


def run(environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*PROGRAM, *arguments], env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert "Traceback" not in done.stderr
    return done


@contextlib.contextmanager
def daemon(environment: dict[str, str], config: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*PROGRAM, "run", "--config", config], env=environment, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_line(process: subprocess.Popen[str], words: str) -> str:
    assert process.stderr is not None
    said = ""
    deadline = time.monotonic() + SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(process.stderr, selectors.EVENT_READ)
        while time.monotonic() < deadline:
            if selector.select(deadline - time.monotonic()):
                line = process.stderr.readline()
                said += line
                if words in line:
                    return line
                if not line:
                    break
    raise AssertionError(f"{words!r} was not said, but: {said}")


def test_help_names_the_exit_codes(environment: dict[str, str]) -> None:
    for arguments in (["--help"], ["run", "--help"]):
        done = run(environment, *arguments)
        assert done.returncode == 0
        assert "exit codes:" in done.stdout
        for code in (0, 64, 70, 73, 75, 76, 77, 78):
            assert f"  {code} " in done.stdout


@pytest.mark.parametrize("argument", ["--version", "version"])
def test_version(environment: dict[str, str], argument: str) -> None:
    done = run(environment, argument)
    assert (done.returncode, done.stdout) == (0, f"edge-agent {__version__}\n")


@pytest.mark.parametrize(
    "arguments", [[], ["walk"], ["run", "--nonsense"], ["run", "--concurrency", "many"], ["run", "--log-level", "loud"]]
)
def test_wrong_usage(environment: dict[str, str], arguments: list[str]) -> None:
    done = run(environment, *arguments)
    assert done.returncode == 64
    assert done.stderr.startswith("usage: ")


def test_bad_configuration(environment: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("= garbage")
    for config in (path, tmp_path / "none.toml"):
        done = run(environment, "run", "--config", config)
        assert done.returncode == 78
        assert done.stderr.startswith(f"edge-agent: {config}: ")


def test_the_configuration_file_may_be_named_by_a_variable(environment: dict[str, str], tmp_path: Path) -> None:
    done = run(environment | {"EDGE_AGENT_CONFIG": str(tmp_path / "none.toml")}, "run")
    assert done.returncode == 78
    assert "none.toml: no such file" in done.stderr


def test_no_credential(environment: dict[str, str], config: Path, tmp_path: Path) -> None:
    (tmp_path / "state" / "credential").unlink()
    done = run(environment, "run", "--config", config)
    assert done.returncode == 77
    assert "airflow edge-agents enroll" in done.stderr


def test_a_state_directory_that_cannot_be_written(environment: dict[str, str], config: Path) -> None:
    done = run(environment | {"EDGE_AGENT_STATE_DIR": "/dev/null/state"}, "run", "--config", config)
    assert done.returncode == 73
    assert "/dev/null/state" in done.stderr


def test_a_runtime_directory_too_deep_for_a_socket(environment: dict[str, str], config: Path, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    done = run(environment | {"EDGE_AGENT_RUNTIME_DIR": str(deep)}, "run", "--config", config)
    assert done.returncode == 73
    assert "runtime_dir" in done.stderr


def test_a_ca_file_that_is_none(environment: dict[str, str], config: Path) -> None:
    done = run(environment | {"EDGE_AGENT_CA_FILE": "/dev/null"}, "run", "--config", config)
    assert done.returncode == 78
    assert "ca_file" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_leaves_at_once_when_the_server_is_away(
    environment: dict[str, str], config: Path, number: signal.Signals
) -> None:
    with daemon(environment, config) as process:
        assert "is the api-server running there?" in wait_for_line(process, "not connected")
        begun = time.monotonic()
        process.send_signal(number)
        assert process.wait(SECONDS) == 0
        assert time.monotonic() - begun < 5
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_a_second_daemon_in_the_same_state_directory(environment: dict[str, str], config: Path) -> None:
    with daemon(environment, config) as process:
        wait_for_line(process, "edge agent starts")
        done = run(environment, "run", "--config", config)
        assert done.returncode == 73
        assert f"pid {process.pid}" in done.stderr
        process.terminate()
        process.wait(SECONDS)


def test_json_lines_and_no_secret_in_them(environment: dict[str, str], config: Path) -> None:
    with daemon(environment | {"EDGE_AGENT_LOG__FORMAT": "json", "EDGE_AGENT_LOG__LEVEL": "debug"}, config) as process:
        lines = [wait_for_line(process, "edge agent starts"), wait_for_line(process, "not connected")]
        process.terminate()
        assert process.stderr is not None
        lines += process.stderr.readlines()
    assert [json.loads(line)["level"] for line in lines][:2] == ["info", "warning"]
    assert SECRET not in "".join(lines)


def test_the_daemon_never_loads_airflow() -> None:
    script = (
        "import sys, airflow_edge_agent.main, airflow_edge_agent.daemon\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('airflow', 'sqlalchemy', 'fastapi')))\n"
        "print(sorted(m for m in sys.modules if m.startswith('airflow_edge_agent.runner')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n[]\n"


def test_help_and_version_load_next_to_nothing() -> None:
    script = (
        "import sys, airflow_edge_agent.main\nprint([m for m in ('pydantic', 'httpx', 'asyncio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_daemon_tells_its_metrics_where_it_is_told_to(environment: dict[str, str], config: Path) -> None:
    path = config.parent / "m.sock"
    config.write_text(f'{config.read_text()}[metrics]\nlisten = "{path}"\n')
    with daemon(environment, config) as process:
        wait_for_line(process, "not connected")
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(SECONDS)
            client.connect(str(path))
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            text = b"".join(iter(lambda: client.recv(65_536), b"")).decode()
        assert "edge_agent_local_connected 0\n" in text
        assert text.endswith("# EOF\n")
        process.terminate()
        process.wait(SECONDS)
    assert not path.exists()


def test_the_daemon_works_without_metrics_where_they_cannot_be_told(environment: dict[str, str], config: Path) -> None:
    config.write_text(f'{config.read_text()}[metrics]\nlisten = "/nowhere/at/all/m.sock"\n')
    with daemon(environment, config) as process:
        assert "/nowhere/at/all/m.sock" in wait_for_line(process, "the metrics are not served")
        wait_for_line(process, "not connected")
        process.terminate()


# The log


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def said(style: str, stream: io.StringIO, level: str = "info") -> str:
    configure_logging(level, style, stream)  # type: ignore[arg-type]  # parametrised with plain words
    log = structlog.get_logger()
    log.debug("details")
    log.warning("not connected", reason="refused\nagain")
    return stream.getvalue()


def test_plain_lines_when_it_is_no_terminal() -> None:
    text = said("auto", io.StringIO())
    assert "\x1b[" not in text
    assert "not connected" in text
    assert "details" not in text
    assert len(text.splitlines()) == 1


def test_colours_on_a_terminal_only_and_not_against_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in said("auto", Terminal())
    assert "\x1b[" not in said("console", Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in said("auto", Terminal())


def test_json() -> None:
    entry = json.loads(said("json", io.StringIO()))
    assert entry["event"] == "not connected"
    assert entry["level"] == "warning"
    assert entry["reason"] == "refused\nagain"
    assert entry["timestamp"].endswith("Z")


def test_levels() -> None:
    assert "details" in said("auto", io.StringIO(), "debug")
    assert said("auto", io.StringIO(), "error") == ""


def test_it_does_not_run_as_root_without_being_told(environment: dict[str, str], config: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root is refused")
    config.write_text(config.read_text().replace("allow_root = true\n", ""))
    done = run(environment, "run", "--config", config)
    assert done.returncode == 78
    assert done.stderr.count("\n") == 1
    assert "allow_root" in done.stderr
    assert [path.name for path in (config.parent / "state").iterdir()] == ["credential"], "nothing was begun"
    with daemon(environment | {"EDGE_AGENT_ALLOW_ROOT": "true"}, config) as process:
        wait_for_line(process, "edge agent starts")
