"""What SSH says to who connects."""

import socket


def banner(address, port=22, timeout_s=60):
    """The first bytes of a server's line."""
    with socket.create_connection((address, port), timeout=timeout_s) as opened:
        opened.settimeout(timeout_s)
        return opened.recv(64)
