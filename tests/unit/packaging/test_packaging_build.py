"""The parts of the build, on small trees."""

from __future__ import annotations

import importlib.util
import marshal
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgepack import bytecode, environment, repository, scripts
from edgepack.context import read_description, source_date
from edgepack.faults import BuildError
from edgepack.lock import Lock, Pins
from edgepack.stage import Stage
from edgepack.target import Target
from harness.signing import gnupg_home

ROOT = Path(__file__).parents[3]
HERE = Target.parse(f"3.{sys.version_info.minor}", "amd64")


@pytest.mark.parametrize(
    ("python", "arch"), [("3.9", "amd64"), ("4.0", "amd64"), ("3.11.2", "amd64"), ("3.12", "i386")]
)
def test_impossible_targets_are_refused(python: str, arch: str) -> None:
    with pytest.raises(BuildError, match=r"--(python|arch)"):
        Target.parse(python, arch)


def test_the_dependency_on_python_follows_from_the_target() -> None:
    target = Target.parse("3.13", "arm64")
    assert target.deb_depends == ["python3 (>= 3.13~)", "python3 (<< 3.14~)"]
    assert target.rpm_requires == ["python(abi) = 3.13"]
    assert (target.interpreter, target.machine) == ("/usr/bin/python3.13", "aarch64")


def test_pins_can_be_told_apart_with_their_hashes() -> None:
    pins = Pins("a==1 \\\n    --hash=sha256:aa\nb-c==2 ; python_version < '3.12' \\\n    --hash=sha256:bb\n")
    assert pins.constraints == ["a==1", "b-c==2 ; python_version < '3.12'"]
    assert pins.only(frozenset({"b-c"})).text.splitlines()[-1].strip() == "--hash=sha256:bb"
    assert "--hash=sha256:bb" not in pins.without(frozenset({"b-c"})).text


def test_what_the_description_leaves_out_is_locked() -> None:
    rules = read_description(ROOT)["runtime"]["left_out"]
    locked = {line.split("==")[0] for line in Lock(ROOT).of_group("runtime").constraints}
    for rule in rules["distributions"]:
        assert rule["reason"]
        assert set(rule["names"]) <= locked
    assert all(rule["reason"] for rule in rules["files"])


def test_bytecode_is_the_same_wherever_it_is_made_and_knows_its_final_path(tmp_path: Path) -> None:
    code = 'NAMES = {"a", "b", "c", "d", "e"}\ndef f(x):\n    return x in {"one", "two", "three", "four"}\n'
    made = []
    for name in ("here", "there"):
        stage = tmp_path / name
        for number in range(5):
            path = stage / f"usr/lib/p/m{number}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code)
        count = bytecode.compile_tree(stage / "usr", stage=stage, final="/opt/final", interpreter=Path(sys.executable))
        assert count == 5
        made.append({path.name: path.read_bytes() for path in sorted(stage.rglob("*.pyc"))})
    assert made[0] == made[1]
    data = made[0][f"m0.{sys.implementation.cache_tag}.pyc"]
    # Flags of PEP 552: by hash, and not checked.
    assert data[4:8] == b"\1\0\0\0"
    assert marshal.loads(data[16:]).co_filename == "/opt/final/usr/lib/p/m0.py"


def test_docstrings_can_be_left_out_and_asserts_stay(tmp_path: Path) -> None:
    text = (
        '"""One."""\nfrom __future__ import annotations\n'
        'def f():\n    """Two."""\n    """Three."""\n'
        'class C:\n    """Four."""\n    def g(self):\n        """Five."""\n        return "kept"\n'
        'assert f() is None, "here"\n'
    )
    (tmp_path / "m.py").write_text(text)
    bytecode.compile_tree(tmp_path, stage=tmp_path, final="/f", interpreter=Path(sys.executable), docstrings=False)
    data = next(tmp_path.rglob("*.pyc")).read_bytes()
    assert not any(word in data for word in (b"One.", b"Two.", b"Three.", b"Four.", b"Five."))
    code = marshal.loads(data[16:])
    assert code.co_filename == "/f/m.py"
    names: dict[str, Any] = {}
    exec(code, names)
    assert (names["C"]().g(), names["f"].__code__.co_firstlineno, names.get("__doc__")) == ("kept", 3, None)
    assert b"here" in data
    # The header is that of the source, by its hash.
    assert data[8:16] == importlib.util.source_hash(text.encode())


def test_a_module_that_does_not_compile_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def (:\n")
    with pytest.raises(BuildError, match=r"broken\.py"):
        bytecode.compile_tree(tmp_path, stage=tmp_path, final="/", interpreter=Path(sys.executable))


def test_an_interpreter_of_another_version_is_refused() -> None:
    with pytest.raises(BuildError, match=r"no working Python 3\.99"):
        bytecode.find_interpreter(Target((3, 99), "amd64"), sys.executable)


def test_leaving_out_what_is_not_there_is_a_stale_description(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="gone"):
        environment.leave_out(tmp_path, frozenset({"gone"}))
    with pytest.raises(BuildError, match="matches nothing"):
        environment.leave_out_files(tmp_path, ["gone/*"])


def test_a_distribution_is_left_out_with_all_its_files_and_no_other(tmp_path: Path) -> None:
    for name in ("one", "two"):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        package = tmp_path / "shared" / name
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (info / "RECORD").write_text(f"shared/{name}/__init__.py,,\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n")
    assert environment.leave_out(tmp_path, frozenset({"one"})) == [environment.LeftOut("one", "1.0")]
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "METADATA", "RECORD", "__init__.py", "shared", "two", "two-1.0.dist-info",
    ]  # fmt: skip


def test_a_manifest_has_owners_modes_times_and_configuration(tmp_path: Path) -> None:
    stage = Stage(tmp_path, own=["/usr/lib/p"])
    stage.write("/usr/lib/p/a/x.py", "x")
    stage.write("/etc/p.conf", "x", 0o640)
    stage.configuration.add("/etc/p.conf")
    stage.write("/usr/bin/p", "x", 0o755, only="deb")
    stage.link("/usr/lib/p/link", "a")
    entries = {entry["dst"]: entry for entry in stage.contents(0, "deb")}
    assert list(entries) == sorted(entries)
    assert set(entries) == {
        "/etc/p.conf",
        "/usr/bin/p",
        "/usr/lib/p",
        "/usr/lib/p/a",
        "/usr/lib/p/a/x.py",
        "/usr/lib/p/link",
    }
    assert entries["/etc/p.conf"]["type"] == "config|noreplace"
    assert entries["/etc/p.conf"]["file_info"]["mode"] == 0o640
    assert entries["/usr/bin/p"]["packager"] == "deb"
    assert entries["/usr/lib/p/link"]["src"] == "a"
    assert {entry["file_info"]["mtime"] for entry in entries.values()} == {"1970-01-01T00:00:00+00:00"}
    assert {entry["file_info"]["owner"] for entry in entries.values()} == {"root"}


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="no shellcheck here")
@pytest.mark.parametrize("package", ["agent", "runtime"])
def test_shellcheck_finds_nothing_in_the_maintainer_scripts(tmp_path: Path, package: str) -> None:
    made = scripts.render(ROOT / "packaging/scripts", package, tmp_path, {"PACKAGE": f"airflow-edge-{package}"})
    assert {path.name for path in made} == {"postinst", "prerm", "postrm", "post", "preun", "postun", "posttrans"}
    # Shared functions and a list of units that one of them does not use; the list is split on purpose.
    check = ["shellcheck", "--shell=sh", "--exclude=SC2317,SC2034,SC2086", *map(str, made)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    for path in made:
        subprocess.run(["dash", "-n", str(path)], check=True)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="no shellcheck here")
def test_shellcheck_finds_nothing_in_other_programs() -> None:
    others = [
        "bundle/install.sh",
        "compose/entrypoint.sh",
        "compose/secrets.sh",
        "runtime/edge-runtime",
        "runtime/python",
    ]
    subprocess.run(["shellcheck", *(ROOT / "packaging" / name for name in others)], check=True)


def test_the_time_of_the_source_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert source_date(ROOT) == 1700000000
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(BuildError, match="seconds since 1970"):
        source_date(ROOT)


def test_a_repository_needs_packages_and_a_key(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="make packages"):
        repository.make(tmp_path, tmp_path / "out", "nobody")
    (tmp_path / "x.deb").touch()
    with gnupg_home(tmp_path / "gnupg"), pytest.raises(BuildError, match="no secret key for 'nobody'"):
        repository.make(tmp_path, tmp_path / "out", "nobody")
