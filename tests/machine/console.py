"""Runs inside a machine: takes commands from a virtio-serial port, runs them as root, and answers.

Both ways one JSON object per line. A request has ``id``, ``argv``, ``stdin`` and ``seconds``; its answer has ``id``,
``code``, ``stdout`` and ``stderr``, and a ``code`` of null if the command did not end in time.
"""

import json
import os
import subprocess
import sys


def main() -> None:
    """Answer until the port goes away."""
    port = os.open(sys.argv[1], os.O_RDWR)
    received = b""
    while data := os.read(port, 65536):
        received += data
        *lines, received = received.split(b"\n")
        for line in lines:
            answer = json.dumps(_run(json.loads(line))).encode() + b"\n"
            while answer:
                answer = answer[os.write(port, answer) :]


def _run(request: dict) -> dict:  # type: ignore[type-arg]  # runs in the machine, where nothing but Python is
    try:
        done = subprocess.run(  # noqa: PLW1510  the code is the answer
            request["argv"], input=request["stdin"].encode(), capture_output=True, timeout=request["seconds"]
        )
    except subprocess.TimeoutExpired:
        return {"id": request["id"], "code": None, "stdout": "", "stderr": ""}
    except OSError as error:
        return {"id": request["id"], "code": 127, "stdout": "", "stderr": str(error)}
    return {
        "id": request["id"],
        "code": done.returncode,
        "stdout": done.stdout.decode(errors="replace"),
        "stderr": done.stderr.decode(errors="replace"),
    }


if __name__ == "__main__":
    main()
