"""Compiles a tree of modules for its final path: the same bytes on each build, and never compared with its source."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from edgepack.faults import BuildError
from edgepack.target import Target

_WORKERS = 2
"""Fixed, and not the number of cores: which files one process compiles has an influence on the bytes."""

_COMPILE = Path(__file__).with_name("compile_files.py")


def find_interpreter(target: Target, named: str | None = None) -> Path:
    """Return a Python of the target's minor version; any will do, whoever has built it.

    :param named: the one to take.
    :raises BuildError: there is none.
    """
    name = f"python{target.version}"
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    candidates = [named] if named else [f"/usr/bin/{name}", shutil.which(name)]
    if not named:
        candidates += sorted(map(str, pyenv.glob(f"versions/{target.version}.*/bin/python")), reverse=True)
    for candidate in filter(None, candidates):
        check = f"import sys; sys.exit(sys.version_info[:2] != {target.python!r})"
        try:
            answer = subprocess.run([candidate, "-I", "-c", check], capture_output=True, check=False)
        except OSError:
            continue
        if answer.returncode == 0:
            return Path(candidate)
    raise BuildError(
        f"{named or name}: no working Python {target.version} here to compile with; install it or give --interpreter"
    )


def compile_tree(folder: Path, *, stage: Path, final: str, interpreter: Path, docstrings: bool = True) -> int:
    """Compile all modules below ``folder``.

    :param stage: what is cut off the beginning of their paths; ``final`` is put there instead.
    :param docstrings: whether they are kept; they take memory in every process. Asserts always are.
    :return: how many files were compiled.
    :raises BuildError: one of them is no Python.
    """
    files = sorted(str(path) for path in folder.rglob("*.py"))
    # The order of sets within constants follows the hash seed.
    environment = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "PATH": os.environ.get("PATH", "/usr/bin:/bin")}
    command = [str(interpreter), "-S", "-s", "-P", "-B", str(_COMPILE), str(stage), final]
    command.append("keep" if docstrings else "strip")
    workers = []
    for number in range(min(_WORKERS, len(files))):
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdin is not None
        process.stdin.write("\0".join(files[number::_WORKERS]))
        process.stdin.close()
        workers.append(process)
    told = []
    for process in workers:
        assert process.stdout is not None
        told.append(process.stdout.read())
        process.stdout.close()
        if process.wait() != 0:
            told.append(f"(exit {process.returncode})")
    if any(process.returncode for process in workers):
        raise BuildError("cannot be compiled:\n" + "".join(told)[-2000:])
    return len(files)
