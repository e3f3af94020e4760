"""Compiles the modules whose paths come in on standard input; run by a Python of the version that it is done for.

compile_files.py STAGE FINAL keep|strip: FINAL stands for STAGE in what is written; docstrings are kept or left out.
"""

from __future__ import annotations

import ast
import compileall
import importlib._bootstrap_external as importing
import importlib.util
import py_compile
import sys
from pathlib import Path

_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def main(stage: str, final: str, docstrings: str) -> int:
    """Compile all of them and return the exit code."""
    good = True
    for name in sys.stdin.read().split("\0"):
        if docstrings == "keep":
            how = py_compile.PycInvalidationMode.UNCHECKED_HASH
            good &= bool(
                compileall.compile_file(
                    name, quiet=1, force=True, stripdir=stage, prependdir=final, invalidation_mode=how
                )
            )
        else:
            without_docstrings(Path(name), Path(final) / Path(name).relative_to(stage))
    return not good


def without_docstrings(path: Path, final: Path) -> None:
    """Compile one module. Python's own way (``-OO``) would take the asserts, too.

    :param final: what the code says that it is from.
    """
    source = path.read_bytes()
    tree = ast.parse(source, str(path))
    for node in ast.walk(tree):
        if not isinstance(node, _WITH_DOCSTRING):
            continue
        # The next one would take its place.
        while ast.get_docstring(node, clean=False) is not None:
            first = node.body.pop(0)
            if not node.body and not isinstance(node, ast.Module):
                node.body.append(ast.copy_location(ast.Pass(), first))
    code = compile(tree, str(final), "exec", dont_inherit=True, optimize=0)
    cache = Path(importlib.util.cache_from_source(str(path)))
    cache.parent.mkdir(exist_ok=True)
    # What py_compile calls, too.
    data = importing._code_to_hash_pyc(code, importlib.util.source_hash(source), False)  # type: ignore[attr-defined]  # noqa: FBT003, SLF001
    cache.write_bytes(data)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
