"""Adds distributions to the task runtime that this file belongs to: further providers, and what they need.

What is wanted is a requirements file that an administrator can read and edit, ``/etc/airflow-edge-runtime/extras.txt``.
What is there is a *set*: a folder ``extras.N`` beside the runtime's own packages, never changed once it is complete.
``extras`` is a link to the present one; a process resolves it when it starts (``airflow-edge-extras.pth``), so a
running task keeps the set that it was started with. The wheels stay in ``/var/lib/airflow-edge-runtime/wheels``: after
an upgrade the set is made again from them, mostly without network.

Runs with the Python that it is for, without that one's site-packages: pip is told what there is.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

WANTED = Path("/etc/airflow-edge-runtime/extras.txt")
STATE = Path("/var/lib/airflow-edge-runtime")
SDK = "apache-airflow-task-sdk"
OK, FAILED, USAGE = 0, 1, 64

_HEAD = "# Added to the task runtime by 'edgectl runtime'. After an edit: edgectl runtime renew\n"
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_REQUIREMENT = re.compile(rf"({_NAME.pattern})(\[[A-Za-z0-9,._ -]+\])?\s*([<>=!~][<>=!~0-9A-Za-z.,*+ ]*)?")
_LAUNCH = "import sys; sys.path[:0] = {paths!r}; from pip._internal.cli.main import main; sys.exit(main())"
_CHECK = "import sys; sys.path.append({path!r}); import airflow.sdk.execution_time.task_runner, airflow.sdk"
_MOST_ROUNDS = 8
"""Each brings back at least one distribution that was left out; real ones need one or two."""
_SAID = 12
"""Lines of pip's that are shown when it fails."""


class ExtrasError(Exception):
    """It cannot be done. The message is for the operator."""


def canonical(name: str) -> str:
    """Return a distribution's name as PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@dataclass
class Wanted:
    """The requirements file: requirements by name, and where pip looks for them.

    :param sources: options of pip, like ``--no-index`` or ``--find-links /srv/wheels``.
    """

    requirements: dict[str, str] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)

    @classmethod
    def parse(cls, text: str) -> Wanted:
        """Read it.

        :raises ExtrasError: a line is neither a requirement nor an option that is known here.
        """
        found = cls()
        for number, line in enumerate(text.splitlines(), 1):
            words = line.partition(" #")[0].strip()
            if not words or words.startswith("#"):
                continue
            if words == "--no-index" or words.startswith(("--find-links ", "--index-url ", "--extra-index-url ")):
                found.sources.append(words)
                continue
            try:
                found.add(words)
            except ExtrasError as error:
                raise ExtrasError(f"{WANTED}, line {number}: {error}") from None
        return found

    def add(self, requirement: str) -> None:
        """Add a requirement, or replace the one of the same name.

        :raises ExtrasError: it is none.
        """
        match = _REQUIREMENT.fullmatch(requirement.strip())
        if match is None:
            raise ExtrasError(f"'{requirement}' is no requirement; give NAME, NAME==1.2 or NAME[extra]>=1.2")
        self.requirements[canonical(match[1])] = requirement.strip()

    def text(self) -> str:
        """Write it."""
        return _HEAD + "".join(f"{line}\n" for line in [*self.sources, *self.requirements.values()])


class Runtime:
    """One version of the task runtime.

    :param top: its folder.
    """

    def __init__(self, top: Path, state: Path = STATE) -> None:
        self.top = top
        self.site = next(top.glob("lib/python3.*/site-packages"))
        self.constraints = top / "share/constraints.txt"
        self.left_out = top / "share/left-out"
        self.pip = top / "share/pip"
        self.wheels = state / "wheels"
        self.link = top / "extras"

    @property
    def installed(self) -> dict[str, str]:
        """What belongs to the runtime itself: versions by name."""
        found = importlib.metadata.distributions(path=[str(self.site)])
        return {canonical(item.name): item.version for item in found}

    def present(self) -> dict[str, str]:
        """Return the present set: versions by name."""
        found = importlib.metadata.distributions(path=[str(self.link)]) if self.link.exists() else ()
        return {canonical(item.name): item.version for item in found}

    def renew(self, wanted: Wanted, *, fresh: bool = False) -> None:
        """Make a set of what is wanted and let new processes have it. Nothing has changed if that fails.

        :param fresh: ask where wheels come from before looking among those that are here.
        :raises ExtrasError: it cannot be made.
        """
        for name in wanted.requirements:
            if name in self.installed:
                raise ExtrasError(f"{name} {self.installed[name]} belongs to the task runtime and is not changed here")
        recorded = self.link / ".wanted"
        if not fresh and recorded.exists() and recorded.read_text(encoding="utf-8") == wanted.text():
            return
        if not wanted.requirements:
            self.link.unlink(missing_ok=True)
            return
        with tempfile.TemporaryDirectory(prefix="edge-runtime-") as scratch:
            pins = self._find(wanted, Path(scratch), fresh=fresh)
            made = self._install(pins, Path(scratch))
        (made / ".wanted").write_text(wanted.text(), encoding="utf-8")
        temporary = self.top / ".extras-new"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(made.name)
        temporary.replace(self.link)

    def _find(self, wanted: Wanted, scratch: Path, *, fresh: bool) -> list[str]:
        """Return pinned requirements with hashes, and have their wheels."""
        known = ["--no-index", "--find-links", str(self.wheels)]
        given = [word for line in wanted.sources for word in line.split(maxsplit=1)]
        if self.wheels.is_dir() and not fresh:
            with contextlib.suppress(ExtrasError):
                return self._resolve(wanted, known, scratch)
        pins = self._resolve(wanted, given, scratch)
        self.wheels.mkdir(parents=True, exist_ok=True)
        file = scratch / "download.txt"
        file.write_text("".join(pins), encoding="utf-8")
        if not pins:
            return pins
        self._pip("download", "--no-deps", "--dest", str(self.wheels), *given, "--requirement", str(file))
        return pins

    def _resolve(self, wanted: Wanted, sources: Sequence[str], scratch: Path) -> list[str]:
        """Return what has to be added.

        The runtime leaves out distributions that executing a task does not need, though its own metadata asks for them.
        They are shown to pip as installed, unless something that is to be added asks for them itself.
        """
        missing = {canonical(item.name) for item in importlib.metadata.distributions(path=[str(self.left_out)])}
        needed = missing & set(wanted.requirements)
        for _ in range(_MOST_ROUNDS):
            file, report = scratch / "wanted.txt", scratch / "report.json"
            lines = [*wanted.requirements.values(), *sorted(needed - set(wanted.requirements))]
            file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            seen = self._pretend(missing - needed, scratch)
            self._pip(
                "install", "--dry-run", "--report", str(report), "--constraint", str(self.constraints), *sources,
                "--requirement", str(file), seen=[str(seen)],
            )  # fmt: skip
            items = json.loads(report.read_text(encoding="utf-8"))["install"]
            more = {name for item in items for name in _asked_for(item["metadata"])} & missing - needed
            if not more:
                return self._pins(items)
            needed |= more
        raise ExtrasError("what is wanted needs ever more of what the runtime leaves out")

    def _pins(self, items: list[dict[str, Any]]) -> list[str]:
        own, pins = self.installed, []
        for item in items:
            name, version = canonical(item["metadata"]["name"]), item["metadata"]["version"]
            if name in own:
                raise ExtrasError(f"it needs {name} {version}, and the task runtime has {own[name]}, which stays")
            pins.append(
                f"{name}=={version} --hash=sha256:{item['download_info']['archive_info']['hashes']['sha256']}\n"
            )
        return pins

    def _pretend(self, names: set[str], scratch: Path) -> Path:
        """Return a folder that shows only these as installed."""
        folder = scratch / "left-out"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for path in self.left_out.iterdir():
            if canonical(path.name.removesuffix(".dist-info").rsplit("-", 1)[0]) in names:
                (folder / path.name).symlink_to(path)
        return folder

    def _install(self, pins: list[str], scratch: Path) -> Path:
        numbers = [int(path.name.partition(".")[2]) for path in self.top.glob("extras.*") if path.suffix[1:].isdigit()]
        made = self.top / f"extras.{max(numbers, default=0) + 1}"
        file = scratch / "pins.txt"
        file.write_text("".join(pins), encoding="utf-8")
        try:
            made.mkdir()
            if pins:
                self._pip(
                    "install", "--no-deps", "--no-compile", "--target", str(made), "--no-index", "--find-links",
                    str(self.wheels), "--requirement", str(file), seen=[],
                )  # fmt: skip
            # For its final path, and so that no task tries to write there.
            _run([str(self.top / "bin/python"), "-I", "-m", "compileall", "-q", str(made)], "compiling")
            check = [str(self.top / "bin/python"), "-I", "-c", _CHECK.format(path=str(made))]
            _run(check, "the Task SDK does not work with it")
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        return made

    def _pip(self, *arguments: str, seen: Sequence[str] = ()) -> None:
        """Run the runtime's pip; wheels only, so that nothing of theirs is executed here.

        :param seen: more folders with what is installed.
        """
        code = _LAUNCH.format(paths=[str(self.pip), str(self.site), *seen])
        options = ["--disable-pip-version-check", "--no-input", "--no-cache-dir", "--only-binary", ":all:"]
        command = [str(self.top / "bin/python"), "-I", "-S", "-c", code, arguments[0], *options, *arguments[1:]]
        _run(command, "pip finds no way")


def _asked_for(metadata: dict[str, Any]) -> Iterator[str]:
    """Yield the names that a distribution asks for, whatever for: too many only costs space."""
    for line in metadata.get("requires_dist", ()):
        if "extra ==" not in line and (match := _NAME.match(line)):
            yield canonical(match[0])


def _run(command: list[str], failure: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        _, found, conflict = done.stdout.partition("The conflict is caused by:")
        if found:
            raise ExtrasError(f"{failure}:\n  " + "\n  ".join(conflict.split("\n\n")[0].strip().splitlines()[:_SAID]))
        said = [line.strip() for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING: ")]
        lines = [line.removeprefix("ERROR: ") for line in said]
        raise ExtrasError("\n  ".join([f"{failure}:", *lines[-_SAID:]]))


def _read() -> Wanted:
    try:
        return Wanted.parse(WANTED.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Wanted()


def _write(wanted: Wanted) -> None:
    WANTED.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    temporary = WANTED.with_suffix(".new")
    temporary.write_text(wanted.text(), encoding="utf-8")
    temporary.replace(WANTED)


def act(arguments: argparse.Namespace, runtime: Runtime) -> None:
    """Carry out a command.

    :raises ExtrasError: it cannot be done.
    """
    wanted = _read()
    if arguments.command == "list":
        print(json.dumps({"runtime": runtime.top.name, "task_sdk": runtime.installed.get(SDK),
                          "wanted": list(wanted.requirements.values()), "added": runtime.present()}))  # fmt: skip
        return
    if arguments.command == "install":
        for requirement in arguments.names:
            wanted.add(requirement)
        if arguments.sources:
            wanted.sources = arguments.sources
    if arguments.command == "remove":
        for name in arguments.names:
            if wanted.requirements.pop(canonical(name), None) is None:
                raise ExtrasError(f"{name}: not among what was added; 'edgectl runtime list' shows that")
    runtime.renew(wanted, fresh=arguments.command == "install")
    if arguments.command != "renew":
        _write(wanted)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line, which edgectl writes."""
    parser = argparse.ArgumentParser(prog="extras")
    commands = parser.add_subparsers(dest="command", required=True)
    install = commands.add_parser("install")
    install.add_argument("--source", dest="sources", action="append", default=[])
    install.add_argument("names", nargs="+")
    commands.add_parser("remove").add_argument("names", nargs="+")
    commands.add_parser("list")
    commands.add_parser("renew")
    return parser.parse_args(argv)


def main() -> int:
    """Run it and return the exit code."""
    arguments = parse()
    os.umask(0o022)
    try:
        STATE.mkdir(mode=0o755, parents=True, exist_ok=True)
        with (STATE / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            act(arguments, Runtime(Path(__file__).resolve().parents[1]))
    except (ExtrasError, OSError) as error:
        print(f"airflow-edge-runtime: {error}", file=sys.stderr)
        return FAILED
    return OK


def _leave() -> NoReturn:
    sys.exit(main())


if __name__ == "__main__":
    _leave()
