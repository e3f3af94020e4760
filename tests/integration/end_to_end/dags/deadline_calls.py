"""What is called when a Dag misses its deadline. A module of its own: callbacks are imported by their path."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def missed(word: str, **kwargs: Any) -> None:
    """Leave a note where the run's configuration says."""
    conf = kwargs["context"]["dag_run"]["conf"]
    with (Path(conf["dir"]) / "calls").open("a") as file:
        file.write(f"{word} {os.getpid()}\n")
    print(f"the deadline was missed: {word}")


def broken(**_: Any) -> None:
    """Fail."""
    raise ValueError("this callback always fails")
