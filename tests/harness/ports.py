"""Free ports, as free of races as the kernel allows."""

from __future__ import annotations

import socket


def reserve_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port that nobody else is given for about a minute.

    A connection is made through the port and closed from its listening side. That leaves the port in TIME_WAIT: the
    kernel hands it to nobody who asks for any port, yet a server that sets ``SO_REUSEADDR`` may bind it at once.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, 0))
        listener.listen(1)
        port: int = listener.getsockname()[1]
        with socket.create_connection((host, port), timeout=5) as client:
            accepted, _ = listener.accept()
            accepted.close()
            # Reading the end of the stream makes sure that the listening side closed first.
            client.recv(1)
    return port
