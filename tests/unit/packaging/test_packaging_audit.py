"""A vulnerability that is known fails; that nobody could be asked is said, and does not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from edgepack.audit import audit, read

FAULT = {"id": "PYSEC-1", "aliases": ["CVE-2026-1"], "fix_versions": ["2.0"], "description": "bad"}


def program(folder: Path, answers: dict[str, Any]) -> list[str]:
    """Make a program that answers as pip-audit does, for each service."""
    path = folder / "pip_audit.py"
    path.write_text(
        "import json, sys\n"
        f"answer = json.loads({json.dumps(answers)!r})[sys.argv[sys.argv.index('--vulnerability-service') + 1]]\n"
        "print(json.dumps(answer) if isinstance(answer, dict) else '')\n"
        "sys.exit(answer if isinstance(answer, str) else 0)\n"
    )
    return [sys.executable, str(path)]


def report(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"dependencies": list(parts), "fixes": []}


GOOD = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "1", "vulns": [FAULT]}
UNKNOWN = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("answers", "good", "words"),
    [
        ({"pypi": report(GOOD)}, True, "1 of 1 distributions are known to pypi"),
        ({"pypi": report(GOOD, UNKNOWN)}, True, "1 of 2 distributions are known to pypi"),
        ({"pypi": report(GOOD, BAD)}, False, "VULNERABLE  b 1: PYSEC-1, CVE-2026-1; mended in 2.0"),
        ({"pypi": report(UNKNOWN), "osv": report(BAD)}, False, "VULNERABLE"),
        ({"pypi": "no route to host", "osv": report(GOOD)}, True, "pypi cannot be asked: no route to host"),
        ({"pypi": report(UNKNOWN), "osv": "no route to host"}, True, "NOT CHECKED"),
    ],
)
def test_what_an_audit_says(
    answers: dict[str, Any],
    good: bool,  # noqa: FBT001  a parameter of the test
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert audit("agent", tmp_path / "requirements.txt", program(tmp_path, answers)) is good
    assert words in capsys.readouterr().out


def test_a_report_is_read() -> None:
    found = read(json.dumps(report(GOOD, BAD, UNKNOWN)))
    assert (found.asked, found.unknown, len(found.vulnerable)) == (3, ["c: not found"], 1)
