"""The configuration: what is taken, what is refused, and in which words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from airflow_edge_agent.configuration import ConfigError, load_settings
from airflow_edge_agent.core.limits import LimitRules
from airflow_edge_agent.protocol.limits import JobLimits
from airflow_edge_agent.settings import Settings

MINIMAL = 'server_url = "https://airflow.example.com"\n'


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("EDGE_AGENT_")]:
        monkeypatch.delenv(name)


def load(tmp_path: Path, text: str = MINIMAL, **flags: Any) -> Settings:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return load_settings(path, flags)


def fault(tmp_path: Path, text: str, **flags: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, **flags)
    message = str(caught.value)
    assert str(tmp_path / "agent.toml") in message or "EDGE_AGENT_" in message
    assert "Traceback" not in message
    assert "pydantic" not in message
    return message


def test_defaults(tmp_path: Path) -> None:
    settings = load(tmp_path)
    assert settings.queues == ["default"]
    assert settings.concurrency == os.cpu_count()
    assert settings.name
    assert settings.run_dir == settings.state_dir / "run"
    assert settings.jobs_dir == settings.state_dir / "jobs"
    assert settings.runner_dir == settings.state_dir / "runner"
    assert settings.runner_socket == settings.run_dir / "runner.sock"
    assert settings.execution_api == "relay"
    assert (settings.log.level, settings.log.format) == ("info", "auto")


def test_everything_at_once(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        """
        server_url = "https://airflow.example.com/base/"
        name = "press-shop-3"
        queues = ["a", "press shop"]
        concurrency = 3
        state_dir = "/srv/state"
        runtime_dir = "/run/x"
        execution_api_url = "http://localhost:8080/execution/"
        ca_file = "/etc/ca.pem"
        client_cert = "/etc/client.pem"
        client_key = "/etc/client.key"
        tls_server_name = "airflow.internal"
        carrier = "http"
        spool_max_mb = 20
        [drain]
        deadline_seconds = 60
        kill_grace_seconds = 2.5
        [runner]
        python = "/opt/py"
        idle_seconds = 10
        env = { A = "1" }
        pass_env = ["B"]
        [bundles.plant]
        path = "/srv/dags"
        [bundles.git]
        classpath = "x.Git"
        kwargs = { tracking_ref = "main", subdir = ["a"] }
        [log]
        level = "debug"
        format = "json"
        """,
    )
    assert settings.server_url == "https://airflow.example.com/base"
    assert settings.run_dir == Path("/run/x")
    assert settings.runner.env == {"A": "1"}
    assert settings.bundles["git"].kwargs == {"tracking_ref": "main", "subdir": ["a"]}
    assert settings.drain.kill_grace_seconds == 2.5


def test_variables_win_over_the_file_and_flags_over_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = MINIMAL + 'name = "file"\nconcurrency = 1\nqueues = ["file"]\n[log]\nlevel = "error"\nformat = "json"\n'
    monkeypatch.setenv("EDGE_AGENT_NAME", "env")
    monkeypatch.setenv("EDGE_AGENT_CONCURRENCY", "2")
    monkeypatch.setenv("EDGE_AGENT_RUNNER__PYTHON", "/env/python")
    monkeypatch.setenv("EDGE_AGENT_QUEUES", '["env"]')
    monkeypatch.setenv("EDGE_AGENT_CONFIG", "/not/a/setting")
    settings = load(tmp_path, text, name="flag", log={"level": "debug"})
    assert (settings.name, settings.concurrency, settings.queues) == ("flag", 2, ["env"])
    assert settings.runner.python == Path("/env/python")
    assert (settings.log.level, settings.log.format) == ("debug", "json")


def test_variables_alone_suffice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("airflow_edge_agent.configuration.DEFAULT_CONFIG", tmp_path / "missing.toml")
    monkeypatch.setenv("EDGE_AGENT_SERVER_URL", "https://airflow.example.com")
    assert load_settings(None, {}).server_url == "https://airflow.example.com"


def test_nothing_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("airflow_edge_agent.configuration.DEFAULT_CONFIG", tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match="'server_url' is missing") as caught:
        load_settings(None, {})
    assert str(tmp_path / "missing.toml") in str(caught.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('server_ulr = "x"', "'server_ulr' is no setting; did you mean 'server_url'?"),
        ("[drain]\ndeadline = 5", "'drain.deadline' is no setting; did you mean 'deadline_seconds'?"),
        ("[runner]\npyhton = 'x'", "'runner.pyhton' is no setting; did you mean 'python'?"),
        ("[bundles.a]\npaht = '/x'", "'bundles.a.paht' is no setting; did you mean 'path'?"),
        ("[log]\nlvl = 1", "'log.lvl' is no setting"),
        ("zzz = 1", "'zzz' is no setting"),
        ('name = "a b"', "'name'"),
        ('name = ""', "'name'"),
        (f'name = "{"n" * 64}"', "'name'"),
        ("queues = []", "'queues'"),
        ('queues = ["a,b"]', "'queues.0'"),
        ('queues = "default"', "'queues'"),
        ("concurrency = 0", "'concurrency'"),
        ("concurrency = 1001", "'concurrency'"),
        ('concurrency = "many"', "'concurrency'"),
        ("[drain]\nkill_grace_seconds = 0", "'drain.kill_grace_seconds'"),
        ("[drain]\ndeadline_seconds = -1", "'drain.deadline_seconds'"),
        ("[log]\nlevel = 'loud'", "'log.level'"),
        ("log = 'loud'", "'log'"),
        ("[bundles.a]", "'path' (a directory) or 'classpath'"),
        ("[bundles.a]\npath = '/x'\nclasspath = 'y'", "'path' (a directory) or 'classpath'"),
        ('execution_api_url = "ftp://x"', "'execution_api_url'"),
        ('client_cert = "/x"', "both 'client_cert' and 'client_key'"),
        ('client_key = "/x"', "both 'client_cert' and 'client_key'"),
        ('tls_server_name = ""', "'tls_server_name'"),
        ('carrier = "pigeon"', "'carrier'"),
        ("spool_max_mb = 0", "'spool_max_mb'"),
        ("[metrics]\nlisten = 9464", "'metrics.listen'"),
        ("[metrics]\nlisten = '9464'", "'metrics': 'listen' must be the path of a unix socket"),
        ("[metrics]\nlisten = 'localhost:9464'", "'listen' must be the path of a unix socket"),
        ("[metrics]\nlisten = '127.0.0.1:0'", "'listen' must be the path of a unix socket"),
        ("[metrics]\nlisten = '127.0.0.1:65536'", "'listen' must be the path of a unix socket"),
        ("[metrics]\nlisten = '0.0.0.0:9464'", "set allow_remote = true if the network is trusted"),
        ("[metrics]\nlisten = '[::]:9464'", "set allow_remote = true if the network is trusted"),
    ],
)
def test_bad_settings(tmp_path: Path, line: str, words: str) -> None:
    assert words in fault(tmp_path, MINIMAL + line)


@pytest.mark.parametrize(
    "url",
    [
        "", "airflow.example.com", "ftp://x", "https://", "https://u:p@host", "https://host?x=1", "https://host#x",
        "http://[::1", "http://airflow.example.com", "http://10.0.0.1", "https://host:99999", "https://host:port",
        "https://ho st", "https://host/a b",
    ],
)  # fmt: skip
def test_bad_addresses(tmp_path: Path, url: str) -> None:
    message = fault(tmp_path, f'server_url = "{url}"')
    assert "u:p" not in message


@pytest.mark.parametrize("url", ["http://localhost:8080", "http://127.0.0.1", "http://[::1]:8080", "https://h/x/"])
def test_good_addresses(tmp_path: Path, url: str) -> None:
    assert load(tmp_path, f'server_url = "{url}"').server_url == url.rstrip("/")


@pytest.mark.parametrize(
    ("lines", "address"),
    [
        ("listen = '127.0.0.1:9464'", ("127.0.0.1", 9464)),
        ("listen = '[::1]:9464'", ("::1", 9464)),
        ("listen = '/run/x/metrics.sock'", Path("/run/x/metrics.sock")),
        ("listen = '0.0.0.0:9464'\nallow_remote = true", ("0.0.0.0", 9464)),
        ("", None),
    ],
)
def test_where_the_metrics_are(tmp_path: Path, lines: str, address: object) -> None:
    assert load(tmp_path, f"{MINIMAL}\n[metrics]\n{lines}").metrics.address == address


def test_plain_http_on_purpose(tmp_path: Path) -> None:
    text = 'server_url = "http://airflow.example.com"\n'
    assert "allow_plain_http" in fault(tmp_path, text)
    assert load(tmp_path, text + "allow_plain_http = true").allow_plain_http


def test_all_faults_at_once(tmp_path: Path) -> None:
    message = fault(tmp_path, 'name = "a b"\nconcurrency = 0\nzzz = 1')
    assert len(message.splitlines()) == 4


@pytest.mark.parametrize("content", [b"= garbage", b"a = 1\na = 2", b"\xff\xfe", b"\x00", b"[", b"server_url"])
def test_files_that_are_no_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "agent.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"agent\.toml: ") as caught:
        load_settings(path, {})
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_settings(tmp_path / "agent.toml", {})
    with pytest.raises(ConfigError, match="is a directory"):
        load_settings(tmp_path, {})
    with pytest.raises(ConfigError, match="Not a directory"):
        load_settings(Path("/dev/null/agent.toml"), {})


@pytest.mark.parametrize(
    ("name", "value"),
    [("QUEUES", "default"), ("CONCURRENCY", "x"), ("RUNNER", "x"), ("RUNNER__ENV", "x"), ("LOG__LEVEL", "loud")],
)
def test_bad_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"EDGE_AGENT_{name}", value)
    assert "EDGE_AGENT_" in fault(tmp_path, MINIMAL)


def test_relative_paths_do_not_depend_on_who_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The runner works in another directory than the daemon, and both must find the same socket.
    monkeypatch.chdir(tmp_path)
    settings = load(tmp_path, MINIMAL + 'state_dir = "state"\n[bundles.b]\npath = "dags"\n')
    assert settings.state_dir == tmp_path / "state"
    assert settings.credential_file == tmp_path / "state" / "credential"
    assert settings.bundles["b"].path == tmp_path / "dags"
    assert load(tmp_path, MINIMAL + 'state_dir = "~/state"').state_dir == Path.home() / "state"


def test_a_variable_that_is_no_setting_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "agent.toml"
    config.write_text('server_url = "https://airflow.example.com"\n')
    monkeypatch.setenv("EDGE_AGENT_CONCURENCY", "3")
    with pytest.raises(
        ConfigError, match=r"EDGE_AGENT_CONCURENCY: is no setting; did you mean 'EDGE_AGENT_CONCURRENCY'"
    ):
        load_settings(config, {})


LIMITS = """
[limits]
memory_max = "2G"
pids_max = 500
[limits.maximum]
memory_max = "4G"
cpu_quota = "200%"
[limits.queues."press shop"]
memory_max = "512M"
io_weight = 10
"""


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_AGENT_LIMITS__PIDS_MAX", "300")
    rules = load(tmp_path, MINIMAL + LIMITS).limits.rules()
    assert rules.defaults == JobLimits(memory_max_bytes=2 * 2**30, pids_max=300)
    assert rules.maximum == JobLimits(memory_max_bytes=4 * 2**30, cpu_quota_percent=200)
    assert rules.queues == {"press shop": JobLimits(memory_max_bytes=512 * 2**20, io_weight=10)}
    monkeypatch.delenv("EDGE_AGENT_LIMITS__PIDS_MAX")
    assert load(tmp_path).limits.rules() == LimitRules()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "memory_max = 512",
            "'limits.memory_max': 512 is less than 16M, and no task starts in that: is a unit missing?",
        ),
        ('memory = "1G"', "'limits.memory' is no setting; did you mean 'memory_max'?"),
        ('cpu_quota = "1.5"', "'limits.cpu_quota': '1.5' is no share of a core: write a percentage, like \"150%\""),
        ("maximum.pids = 5", "'limits.maximum.pids' is no setting; did you mean 'pids_max'?"),
        ("queues.a.io_weight = 0", "'limits.queues.a.io_weight': 0 is no whole number from 1 to 10000"),
        ('memory_max = "1G"\nmemory_high = "2G"', "'limits': 'memory_high' is above 'memory_max'"),
    ],
)
def test_bad_limits(tmp_path: Path, text: str, message: str) -> None:
    assert message in fault(tmp_path, f"{MINIMAL}[limits]\n{text}\n")


def test_the_runtime_has_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'runtime_python = "/srv/venv/bin/python"\n' + MINIMAL
    assert load(tmp_path, text).runner.python == Path("/srv/venv/bin/python")
    assert load(tmp_path, text + "[runner]\nidle_seconds = 5\n").runner.python == Path("/srv/venv/bin/python")
    both = fault(tmp_path, text + '[runner]\npython = "/other"\n')
    assert "give either 'runtime_python' or 'python' in [runner]: they mean the same" in both
    monkeypatch.setenv("EDGE_AGENT_RUNTIME_PYTHON", "/from/env/python")
    assert load(tmp_path).runner.python == Path("/from/env/python")
