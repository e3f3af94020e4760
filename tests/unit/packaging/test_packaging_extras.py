"""Adding distributions to a runtime: on a small one, with real wheels and a real pip."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from harness.wheels import wheel

SOURCE = Path(__file__).parents[3] / "packaging/runtime/extras.py"


@pytest.fixture(scope="module")
def extras() -> ModuleType:
    spec = importlib.util.spec_from_file_location("extras", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["extras"] = module
    spec.loader.exec_module(module)
    return module


def distribution(folder: Path, name: str, version: str, *needs: str) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    asked = "".join(f"Requires-Dist: {need}\n" for need in needs)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{asked}")


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    wheel(folder, "provider-ssh", "1.0", "apache-airflow-task-sdk>=1.3", "shell>=2")
    wheel(folder, "shell", "2.0", "big-left-out")
    wheel(folder, "big-left-out", "5.0")
    wheel(folder, "big-left-out", "6.0")
    wheel(folder, "for-an-older-one", "1.0", "apache-airflow-task-sdk<1.3")
    wheel(folder, "apache-airflow-task-sdk", "1.2.0")
    return folder


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """Return a runtime as the package makes them: a stand-in for the Task SDK, and something that was left out."""
    return make_runtime(tmp_path / "1.3.0-1")


def make_runtime(top: Path) -> Path:
    import pip  # noqa: PLC0415 -- its place is all that is wanted

    site = top / f"lib/python3.{sys.version_info.minor}/site-packages"
    (site / "airflow/sdk/execution_time").mkdir(parents=True)
    (site / "airflow/sdk/execution_time/task_runner.py").write_text("")
    distribution(site, "apache-airflow-task-sdk", "1.3.0", "big-left-out")
    (top / "share").mkdir()
    (top / "share/pip").mkdir()
    (top / "share/pip/pip").symlink_to(Path(pip.__file__).parent)
    (top / "share/constraints.txt").write_text("apache-airflow-task-sdk==1.3.0\nbig-left-out==5.0\n")
    distribution(top / "share/left-out", "big-left-out", "5.0")
    (top / "bin").mkdir()
    (top / "bin/python").symlink_to(getattr(sys, "_base_executable", sys.executable))
    (top / "pyvenv.cfg").write_text(f"home = {Path(sys.base_prefix) / 'bin'}\ninclude-system-site-packages = false\n")
    return top


def test_what_is_asked_for_comes_with_what_it_needs_and_nothing_else(
    extras: ModuleType, top: Path, wheels: Path, tmp_path: Path
) -> None:
    runtime = extras.Runtime(top, tmp_path / "state")
    wanted = extras.Wanted.parse(f"--no-index\n--find-links {wheels}\nprovider-ssh\n")
    runtime.renew(wanted)
    # What was left out is brought back in the version that the runtime was tested with, because 'shell' needs it.
    assert runtime.present() == {"provider-ssh": "1.0", "shell": "2.0", "big-left-out": "5.0"}
    first = runtime.link.readlink()

    # After an upgrade: from the wheels that were kept.
    for path in wheels.iterdir():
        path.unlink()
    newer = extras.Runtime(make_runtime(tmp_path / "1.3.0-2"), tmp_path / "state")
    newer.renew(wanted)
    assert newer.present() == runtime.present()

    # Taken away again, the old set stays for those who still use it.
    runtime.renew(extras.Wanted())
    assert runtime.present() == {}
    assert (top / first / "shell.py").exists()


def test_what_the_runtime_has_is_never_changed(extras: ModuleType, top: Path, wheels: Path, tmp_path: Path) -> None:
    runtime = extras.Runtime(top, tmp_path / "state")
    sources = f"--no-index\n--find-links {wheels}\n"
    with pytest.raises(extras.ExtrasError, match=r"task-sdk 1\.3\.0 belongs to the task runtime"):
        runtime.renew(extras.Wanted.parse(f"{sources}apache-airflow-task-sdk==1.2.0\n"))
    with pytest.raises(extras.ExtrasError, match="apache-airflow-task-sdk"):
        runtime.renew(extras.Wanted.parse(f"{sources}for-an-older-one\n"))
    with pytest.raises(extras.ExtrasError, match="No matching distribution found for nobody-has-this"):
        runtime.renew(extras.Wanted.parse(f"{sources}nobody-has-this\n"))
    assert not runtime.link.exists()
    assert list(top.glob("extras.*")) == []


def test_a_set_that_breaks_the_sdk_is_not_taken(extras: ModuleType, top: Path, wheels: Path, tmp_path: Path) -> None:
    (top / f"lib/python3.{sys.version_info.minor}/site-packages/airflow/sdk/execution_time/task_runner.py").write_text(
        "import shell\nraise ImportError('not with this one')\n"
    )
    runtime = extras.Runtime(top, tmp_path / "state")
    with pytest.raises(extras.ExtrasError, match="the Task SDK does not work with it"):
        runtime.renew(extras.Wanted.parse(f"--no-index\n--find-links {wheels}\nshell\n"))
    assert not runtime.link.exists()
    assert list(top.glob("extras.*")) == []


@pytest.mark.parametrize(
    "line", ["a; rm -rf /", "--trusted-host x", "a @ https://example.com/a.whl", "-r other.txt", "../x"]
)
def test_other_lines_than_requirements_are_refused(extras: ModuleType, line: str) -> None:
    with pytest.raises(extras.ExtrasError, match="line 2"):
        extras.Wanted.parse(f"# mine\n{line}\n")


def test_a_process_keeps_the_set_that_it_was_started_with(tmp_path: Path) -> None:
    from edgepack import runtime  # noqa: PLC0415 -- all that is of interest of it

    top = make_runtime(tmp_path / "1")
    site = next(top.glob("lib/*/site-packages"))
    (site / "airflow-edge-extras.pth").write_text(runtime._EXTRAS)
    for number in (1, 2):
        (top / f"extras.{number}").mkdir()
        (top / f"extras.{number}/added.py").write_text(f"NUMBER = {number}\n")
    (top / "extras").symlink_to("extras.1")
    switch = (
        "import os, sys; top = sys.argv[1]; os.symlink('extras.2', top + '/new'); "
        "os.replace(top + '/new', top + '/extras'); import added; print(added.NUMBER)"
    )
    command = [str(top / "bin/python"), "-I", "-c", switch, str(top)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1\n"
    command[3] = "import added; print(added.NUMBER)"
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "2\n"
