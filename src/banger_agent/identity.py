"""POST /identity: a guest that runs becomes another one, as after it was cloned with its memory. What the identity drive says at boot
(``banger.guest.identity``), said to a guest that boots no more: each key is optional, unknown ones are refused, and all are checked
before the first is applied.

``hostname`` · ``machine_id`` 32 hex digits · ``authorized_keys`` list of lines · ``seed`` hex, stirred into the kernel's entropy ·
``network`` {"address": "IP/LENGTH", "gateway": IP} of eth0. Programs that run keep what they read before: a new login and the next
start of a service see the new identity. SSH host keys and the agent's token are files: PUT /files writes them.
"""

import os

from banger_agent.http import BadRequest

_MAX_KEYS = 100
_MAX_KEY = 16 * 1024
_MAX_SEED = 4096  # hex digits
_HEX = frozenset("0123456789abcdef")
_LABEL = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")


def _checked_hostname(value):
    good = isinstance(value, str) and 0 < len(value) < 64 and set(value) <= _LABEL
    if not good or value[0] == "-" or value[-1] == "-":
        raise BadRequest(400, "hostname must be 1 to 63 of a-z, 0-9 and - inside")
    return value


def _checked_machine_id(value):
    if not isinstance(value, str) or len(value) != 32 or not set(value) <= _HEX:
        raise BadRequest(400, "machine_id must be 32 hex digits")
    return value


def _checked_keys(value):
    lines = value if isinstance(value, list) and len(value) <= _MAX_KEYS else [None]
    if not all(
        isinstance(line, str) and len(line) <= _MAX_KEY and line.isprintable() for line in lines
    ):
        raise BadRequest(400, "authorized_keys must be a list of at most %d lines" % _MAX_KEYS)
    return lines


def _checked_seed(value):
    even = isinstance(value, str) and 0 < len(value) <= _MAX_SEED and len(value) % 2 == 0
    if not even or not set(value) <= _HEX:
        raise BadRequest(400, "seed must be at most %d hex digits" % _MAX_SEED)
    return bytes.fromhex(value)


def _checked_network(value):
    import ipaddress

    try:
        if not isinstance(value, dict) or set(value) != {"address", "gateway"}:
            raise ValueError("it has address and gateway")
        address = ipaddress.IPv4Interface(str(value["address"]))
        gateway = ipaddress.IPv4Address(str(value["gateway"]))
        if gateway not in address.network or gateway == address.ip:
            raise ValueError("%s is no gateway of %s" % (gateway, address))
    except ValueError as error:
        raise BadRequest(400, "network is not understood", str(error)) from None
    return str(address), str(gateway)


_CHECKS = {
    "hostname": _checked_hostname,
    "machine_id": _checked_machine_id,
    "authorized_keys": _checked_keys,
    "seed": _checked_seed,
    "network": _checked_network,
}


def serve(request):
    """Answer the request."""
    body = request.json()
    unknown = sorted(set(body) - set(_CHECKS))
    if unknown or not body:
        what = "identity does not know %s" % unknown[0][:100] if unknown else "identity is empty"
        raise BadRequest(400, what, "it takes %s" % ", ".join(_CHECKS))
    apply({key: _CHECKS[key](value) for key, value in body.items()}, System())
    request.answer_empty()


def apply(wish, system):
    """Apply checked values in the order of `_CHECKS`; OSError or BadRequest from what could not be done."""
    for key in _CHECKS:
        if key in wish:
            getattr(system, key)(wish[key])


class System:
    """What there is to change. ``root`` can be moved for tests."""

    def __init__(self, root="/"):
        self._root = root

    def hostname(self, name):
        self._write("etc/hostname", name + "\n")
        own = "127.0.1.1 %s.banger %s\n" % (name, name)
        with open(os.path.join(self._root, "etc/hosts")) as file:
            others = [
                line
                for line in file.read(1 << 20).splitlines(True)
                if not line.startswith("127.0.1.1")
            ]
        self._write("etc/hosts", "".join([*others, own]))
        self.name_kernel(name)

    def name_kernel(self, name):
        import socket

        socket.sethostname(name)

    def machine_id(self, text):
        self._write("etc/machine-id", text + "\n")

    def authorized_keys(self, lines):
        self._write("etc/banger/authorized_keys", "".join(line + "\n" for line in lines), 0o600)

    def seed(self, data):
        with open(os.path.join(self._root, "dev/urandom"), "wb", buffering=0) as kernel:
            kernel.write(data)

    def network(self, wish):
        address, gateway = wish
        self.run("ip", "address", "flush", "dev", "eth0")
        self.run("ip", "address", "add", address, "dev", "eth0")
        self.run("ip", "route", "replace", "default", "via", gateway, "dev", "eth0")

    def run(self, *argv):
        from banger_agent import tools

        tools.run(*argv)

    def _write(self, name, text, mode=0o644):
        """Replace a file as a whole."""
        path = os.path.join(self._root, name)
        descriptor = os.open(
            path + ".new",
            os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW,
            mode,
        )
        with open(descriptor, "w") as file:
            os.fchmod(descriptor, mode)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        os.replace(path + ".new", path)
