"""What is written from the parsers and the settings model: pages, completions, the default configuration."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from airflow_edge_agent import settings
from edgepack import agent, completion, default_file, documents, manpage, programs, settings_model

ROOT = Path(__file__).parents[3]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="tool", description="Does 100%% of it.")
    commands = made.add_subparsers(dest="command")
    look = commands.add_parser("look", help="look at it; closely", epilog="exit codes:\n  0  seen\n  1  not seen")
    look.add_argument("--how", choices=("near", "far"), help="from where")
    look.add_argument("file", type=Path, help="what at")
    commands.add_parser("hidden")
    turn = commands.add_parser("turn", help="turn it")
    below = turn.add_subparsers(dest="way")
    below.add_parser("on", help="so that it works").add_argument(
        "--for", metavar="TIME", help=r"how long, \fBlike\fP 2h"
    )
    return made


def test_all_programs_of_the_agent_are_described() -> None:
    made = documents.make(agent.entries(ROOT), version="1.2.3", epoch=0)
    for name in agent.entries(ROOT):
        assert any(page.startswith(f"{name}.") for page in made.pages)
    assert "1970-01-01" in made.pages["agent.toml.5"]
    # The same code gives the same text.
    assert made == documents.make(agent.entries(ROOT), version="1.2.3", epoch=0)


def test_the_page_lists_every_setting_and_its_variable() -> None:
    page = documents.make(agent.entries(ROOT), version="1", epoch=0).pages["agent.toml.5"]
    for name in settings.Settings.model_fields:
        assert manpage.escape(name) in page, name
    assert "EDGE_AGENT_RUNNER__PYTHON" in page


@pytest.mark.skipif(not shutil.which("man"), reason="no man here")
def test_man_has_nothing_to_complain_about(tmp_path: Path) -> None:
    for name, text in documents.make(agent.entries(ROOT), version="1", epoch=0).pages.items():
        (tmp_path / name).write_text(text)
        done = subprocess.run(
            ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", str(tmp_path / name)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stderr == ""


def test_text_in_a_page_is_never_taken_for_a_request() -> None:
    assert manpage.escape(".SH x\n'y\nback\\slash a-b") == "\\&.SH x\n\\&'y\nback\\eslash a\\-b"
    page = manpage.program_page(
        programs.describe(parser()), section=1, summary="s", version="1", date="d", files=(), see_also=("other(8)",)
    )
    assert r"\efBlike\efP" in page
    assert "100%" in page
    assert "hidden" not in page


def test_the_default_file_is_toml_and_changes_nothing() -> None:
    text = documents.make(agent.entries(ROOT), version="1", epoch=0).configuration
    url = {"server_url": "https://airflow.example.com"}
    validate = settings.Settings.model_validate
    assert validate(tomllib.loads(text) | url) == validate(url)


def test_what_the_default_file_shows_can_be_taken_as_it_is() -> None:
    sections = settings_model.read(settings.Settings, documents.DEFAULTS_IN_WORDS)
    shown = [line.removeprefix("#") for line in default_file.render(sections, documents.EXAMPLES).splitlines()]
    # Not the ones that exclude 'path', nor the second name of 'python'.
    unwanted = ("classpath", "kwargs", "runtime_python")
    lines = [line for line in shown if not line.startswith((" ", *unwanted))]
    loaded = settings.Settings.model_validate(tomllib.loads("\n".join(lines)))
    assert loaded.name == "press-07"
    assert loaded.bundles["NAME"].path == Path("/srv/dags")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("tool ", {"look", "turn", "-h", "--help"}),
        ("tool look --how ", {"near", "far"}),
        ("tool look --how n", {"near"}),
        ("tool turn ", {"on", "-h", "--help"}),
        ("tool turn on --", {"--help", "--for"}),
        ("tool turn on --for ", set()),
    ],
)
def test_bash_offers_what_fits(tmp_path: Path, typed: str, offered: set[str]) -> None:
    (tmp_path / "tool").write_text(completion.bash(programs.describe(parser())))
    words = typed.split(" ")
    script = '. ./tool; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _tool; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "-uec", script, "bash", *words], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert set(done.stdout.split()) == offered


def test_bash_offers_files_where_a_file_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "tool").write_text(completion.bash(programs.describe(parser())))
    script = '. ./tool; COMP_WORDS=(tool look to); COMP_CWORD=2; _tool; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-uec", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["tool"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_take_the_completion(tmp_path: Path, shell: str) -> None:
    text = {"zsh": completion.zsh, "fish": completion.fish}[shell](programs.describe(parser()))
    assert "near far" in text
    assert "look at it" in text
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    (tmp_path / "tool").write_text(text)
    subprocess.run([shell, "-n", str(tmp_path / "tool")], check=True)
