"""A port at which nobody answers, not even to refuse: like behind a firewall that drops packets."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from types import TracebackType
from typing import Self

_MOST_FILLERS = 8


class DeafPort:
    """Takes a port of the loopback interface and answers nobody who connects.

    The queue of connections that nobody takes is filled up by our own. To more of them Linux says nothing, neither yes
    nor no; who waits long enough asks again, and is heard by whoever listens there then.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self._port))
            listener.listen(0)
            for _ in range(_MOST_FILLERS):
                filler = stack.enter_context(socket.socket())
                filler.settimeout(0.2)
                try:
                    filler.connect(("127.0.0.1", self._port))
                except TimeoutError:
                    break
            else:
                raise RuntimeError(f"{_MOST_FILLERS} connections did not fill the queue of a listener: is this Linux?")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
