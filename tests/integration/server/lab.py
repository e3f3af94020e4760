"""A process with a real Airflow and its database, in which scenarios run.

Airflow reads its configuration when it is imported, and wants one database per process: so the tests start one of these
for each database, once, and have it run one scenario after the other. Requests come as lines of JSON on standard input,
answers go to the file descriptor in ``LAB_ANSWERS``.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback


def main() -> None:
    with os.fdopen(int(os.environ["LAB_ANSWERS"]), "w", encoding="utf-8") as answers:
        scenes = importlib.import_module("integration.server.scenes")
        print(json.dumps({"ready": True}), file=answers, flush=True)
        for line in sys.stdin:
            name = json.loads(line)
            module, _, function = name.partition(":")
            try:
                # A scenario in several steps has real processes between them.
                if not function.startswith("_then_"):
                    scenes.reset()
                getattr(importlib.import_module(module), function)()
                answer: dict[str, object] = {"ok": True}
            except BaseException as error:  # noqa: BLE001  whatever it is, the test has to tell
                trace = traceback.TracebackException.from_exception(error, capture_locals=True)
                answer = {"ok": False, "trace": "".join(trace.format())}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
