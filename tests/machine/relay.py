"""Connects standard input and output with a port of the loopback: ``relay.py PORT``. QEMU starts one per connection."""

import contextlib
import os
import select
import socket
import sys

CHUNK = 65536


def main() -> None:
    """Relay both ways until either side ends."""
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
        ends = {0: connection.fileno(), connection.fileno(): 1}
        while ends:
            ready, _, _ = select.select(list(ends), [], [])
            for end in ready:
                data = os.read(end, CHUNK)
                if not data:
                    if end != 0:
                        return
                    del ends[end]
                    with contextlib.suppress(OSError):
                        connection.shutdown(socket.SHUT_WR)
                    continue
                view = memoryview(data)
                while view:
                    view = view[os.write(ends[end], view) :]


if __name__ == "__main__":
    with contextlib.suppress(OSError):
        main()
