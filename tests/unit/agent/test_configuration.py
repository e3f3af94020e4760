"""Where settings come from: files, drop-ins, variables, flags; and how that is told."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from airflow_edge_agent.configuration import MASK, ConfigError, Loaded, load, load_settings, reported, shown

MINIMAL = 'server_url = "https://airflow.example.com"\n'


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("EDGE_AGENT_")]:
        monkeypatch.delenv(name)


def write(tmp_path: Path, text: str, **drop_ins: str) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    (tmp_path / "conf.d").mkdir(exist_ok=True)
    for name, content in drop_ins.items():
        (tmp_path / "conf.d" / f"{name}.toml").write_text(content)
    return path


def origins(loaded: Loaded) -> dict[str, str]:
    return {entry.name: entry.origin for entry in shown(loaded)}


def values(loaded: Loaded) -> dict[str, Any]:
    return {entry.name: entry.value for entry in shown(loaded)}


def test_drop_ins_are_read_in_order_and_merged_per_key(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        MINIMAL + 'name = "base"\n[drain]\ndeadline_seconds = 5\nkill_grace_seconds = 7\n',
        b20='name = "second"\n[runner.env]\nB = "2"\n',
        a10='name = "first"\n[drain]\ndeadline_seconds = 9\n[runner.env]\nA = "1"\n',
    )
    (tmp_path / "conf.d" / ".hidden.toml").write_text("= not read")
    (tmp_path / "conf.d" / "README").write_text("= not read")
    loaded = load(path, {})
    assert loaded.settings.name == "second"
    assert (loaded.settings.drain.deadline_seconds, loaded.settings.drain.kill_grace_seconds) == (9, 7)
    assert loaded.settings.runner.env == {"A": "1", "B": "2"}
    assert [file.name for file in loaded.files] == ["agent.toml", "a10.toml", "b20.toml"]
    told = origins(loaded)
    assert told["name"] == str(tmp_path / "conf.d" / "b20.toml")
    assert told["drain.deadline_seconds"] == str(tmp_path / "conf.d" / "a10.toml")
    assert told["drain.kill_grace_seconds"] == str(path)
    assert told["concurrency"] == "default"


def test_origins_of_variables_and_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, MINIMAL + "concurrency = 1\n[log]\nlevel = 'error'\n")
    monkeypatch.setenv("EDGE_AGENT_CONCURRENCY", "2")
    monkeypatch.setenv("EDGE_AGENT_DRAIN", '{"deadline_seconds": 3}')
    monkeypatch.setenv("EDGE_AGENT_RUNNER__PYTHON", "/env/python")
    loaded = load(path, {"log": {"level": "debug"}, "queues": ["flag"]})
    told = origins(loaded)
    assert loaded.settings.drain.deadline_seconds == 3
    assert told["concurrency"] == "EDGE_AGENT_CONCURRENCY"
    assert told["drain.deadline_seconds"] == "EDGE_AGENT_DRAIN"
    assert told["runner.python"] == "EDGE_AGENT_RUNNER__PYTHON"
    assert told["log.level"] == "--log-level"
    assert told["queues"] == "--queues"
    assert told["server_url"] == str(path)


@pytest.mark.parametrize(
    ("drop_in", "words"),
    [
        ("concurency = 3", "'concurency' is no setting; did you mean 'concurrency'?"),
        ("[health.disk_percent]\nentr = 1", "'health.disk_percent.entr' is no setting; did you mean 'enter'?"),
        ("[custom_metrics.ups]\ncomand = ['x']", "'custom_metrics.ups.comand' is no setting; did you mean 'command'?"),
        ("[health.disk_percent]\nenter = 1\nleave = 2", "'leave' must be lower than 'enter'"),
        ("[control]\nsocket = 1", "'control.socket'"),
        ("concurrency = 0", "'concurrency'"),
        ("= garbage", "no valid TOML"),
    ],
)
def test_a_fault_names_the_file_it_is_in(tmp_path: Path, drop_in: str, words: str) -> None:
    path = write(tmp_path, MINIMAL, site=drop_in)
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    lines = str(caught.value).splitlines()
    assert any(line.startswith(str(tmp_path / "conf.d" / "site.toml")) and words in line for line in lines)


def test_a_fault_names_the_variable_it_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_AGENT_LOG__LEVL", "debug")
    with pytest.raises(ConfigError, match=r"^EDGE_AGENT_LOG__LEVL: 'log.levl' is no setting; did you mean 'level'"):
        load(write(tmp_path, MINIMAL), {})


def test_secrets_are_masked(tmp_path: Path) -> None:
    secret = "hunter2"
    path = write(
        tmp_path,
        MINIMAL
        + f'ca_file = "/etc/ca"\n[runner.env]\nDB = "{secret}"\n[bundles.git]\nclasspath = "x.Git"\n'
        + f'kwargs = {{ access_token = "{secret}", subdir = "dags" }}\n',
    )
    told = values(load(path, {}))
    assert told["runner.env.DB"] == MASK
    assert told["bundles.git.kwargs.access_token"] == MASK
    assert told["bundles.git.kwargs.subdir"] == "dags"
    assert told["ca_file"] == "/etc/ca"
    assert secret not in str(told)


def test_a_fault_does_not_tell_a_secret(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + 'server_url2 = "x"\n[runner.env]\nDB = ["hunter2"]\n')
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert "hunter2" not in str(caught.value)


def test_without_a_server_it_is_not_enrolled(tmp_path: Path) -> None:
    path = write(tmp_path, "concurrency = 2\n")
    with pytest.raises(ConfigError, match="'server_url' is missing"):
        load(path, {})
    loaded = load(path, {}, unenrolled=True)
    assert not loaded.enrolled
    assert values(loaded)["server_url"] is None


def test_files_are_bounded(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "#" * 1024 * 1024)
    with pytest.raises(ConfigError, match="longer than 1024 KiB"):
        load(path, {})
    path.write_text(MINIMAL)
    for number in range(101):
        (tmp_path / "conf.d" / f"{number}.toml").write_text("")
    with pytest.raises(ConfigError, match="at most 100"):
        load(path, {})


def test_the_server_is_told_of_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(
        'server_url = "https://airflow.example.com"\nqueues = ["plant"]\n'
        '[runner]\nenv = {PASSWORD = "canary-2", PLAIN = "canary-3"}\npass_env = ["CANARY_4"]\n'
        '[bundles.plant]\nclasspath = "x.Y"\nkwargs = {token = "canary-5"}\n'
        '[custom_metrics.ups]\ncommand = ["ups", "--key", "canary-6"]\n'
    )
    told = reported(load_settings(file, {}))
    assert told is not None
    assert "canary" not in json.dumps(told).lower()
    assert (told["queues"], told["bundles"]) == (["plant"], ["plant"])
    assert load_settings(file, {}).concurrency == told["concurrency"]
    # What is too much for a hello is left out: the agent must come in all the same.
    file.write_text(file.read_text() + "".join(f'[limits.queues.q{n}]\nmemory_max = "1G"\n' for n in range(600)))
    assert reported(load_settings(file, {})) is None
