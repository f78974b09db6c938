"""The process that keeps the network's namespace: stand-alone, standard library only, small.

Started as ``python -I -S holder.py LISTEN_FD UID GID ADDRESS/PREFIX MTU BRIDGE``. It enters a user and a network namespace of its own, makes the bridge, and
serves one request a packet on the listening SOCK_SEQPACKET socket (to its own user only):

    {"do": "ping"}                    -> {"ok": true, "pid": N}
    {"do": "tap", "name": "tap-…"}    -> {"ok": true} and the TAP's descriptor, of which the holder keeps no copy
    {"do": "socket"}                  -> {"ok": true} and a TCP socket made inside the namespace
    {"do": "keep"} and a descriptor   -> {"ok": true}; it stays open as long as the holder lives
    {"do": "end"}                     -> {"ok": true}, then the holder ends, and with it the namespace

When the holder and the VMMs with its TAPs have ended, the kernel removes bridge, TAPs and rules.
"""

import array
import ctypes
import fcntl
import json
import os
import select
import socket
import struct
import sys

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_SIOCGIFINDEX, _SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFMTU = (
    0x8933,
    0x8914,
    0x8916,
    0x891C,
    0x8922,
)
_SIOCBRADDBR, _SIOCBRADDIF = 0x89A0, 0x89A2
_IFF_UP = 1
_SIOCSIFHWADDR, _ARPHRD_ETHER = 0x8924, 1
_BRIDGE_MAC = b"\x02bangr"
_MAX_REQUEST = 4096


def enter(uid, gid):
    """A user namespace in which the caller is root, and a network namespace that it owns."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare: " + os.strerror(ctypes.get_errno()))
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", "0 %d 1" % uid)
    _write("/proc/self/gid_map", "0 %d 1" % gid)


def _write(path, text):
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _request(name, payload=b""):
    """A struct ifreq: the interface's name and 24 bytes."""
    return struct.pack("16s24s", name.encode(), payload)


def _address(text):
    return struct.pack("HH4s", socket.AF_INET, 0, socket.inet_aton(text))


def make_bridge(control, bridge, address, prefix, mtu):
    """The bridge, with the address that is the guests' gateway, and forwarding on."""
    netmask = socket.inet_ntoa(struct.pack(">I", 0xFFFFFFFF << (32 - prefix) & 0xFFFFFFFF))
    fcntl.ioctl(control, _SIOCBRADDBR, bridge.encode() + b"\0")
    _write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1") if os.path.exists(
        "/proc/sys/net/ipv6"
    ) else None
    # A MAC of its own: else the bridge takes its ports' lowest, and guests' ARP caches go stale when a TAP joins.
    fcntl.ioctl(
        control, _SIOCSIFHWADDR, _request(bridge, struct.pack("H6s", _ARPHRD_ETHER, _BRIDGE_MAC))
    )
    fcntl.ioctl(control, _SIOCSIFMTU, _request(bridge, struct.pack("i", mtu)))
    fcntl.ioctl(control, _SIOCSIFADDR, _request(bridge, _address(address)))
    fcntl.ioctl(control, _SIOCSIFNETMASK, _request(bridge, _address(netmask)))
    for name in ("lo", bridge):
        fcntl.ioctl(control, _SIOCSIFFLAGS, _request(name, struct.pack("h", _IFF_UP)))
    _write("/proc/sys/net/ipv4/ip_forward", "1")


def make_tap(control, name, bridge, mtu):
    """A TAP on the bridge; it is gone when its last descriptor is closed."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(descriptor, _TUNSETIFF, _request(name, struct.pack("H", flags)))
        fcntl.ioctl(control, _SIOCSIFMTU, _request(name, struct.pack("i", mtu)))
        index = struct.unpack_from("i", fcntl.ioctl(control, _SIOCGIFINDEX, _request(name)), 16)[0]
        fcntl.ioctl(control, _SIOCBRADDIF, _request(bridge, struct.pack("i", index)))
        fcntl.ioctl(control, _SIOCSIFFLAGS, _request(name, struct.pack("h", _IFF_UP)))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class Holder:
    """Answers requests until it is told to end."""

    def __init__(self, listener, control, bridge, mtu):
        self._listener = listener
        self._control = control
        self._bridge = bridge
        self._mtu = mtu
        self._clients = {}
        self._kept = []
        self._ended = False

    def run(self):
        """The loop."""
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        while not self._ended:
            for descriptor, _ in poll.poll():
                if descriptor == self._listener.fileno():
                    client, _ = self._listener.accept()
                    uid = struct.unpack(
                        "3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                    )[1]
                    if uid != 0:  # uids are those of our namespace: 0 is the user that started us
                        client.close()
                        continue
                    self._clients[client.fileno()] = client
                    poll.register(client, select.POLLIN)
                elif not self._serve(self._clients[descriptor]):
                    poll.unregister(descriptor)
                    self._clients.pop(descriptor).close()

    def _serve(self, client):
        try:
            data, ancillary, _, _ = client.recvmsg(_MAX_REQUEST, socket.CMSG_SPACE(16))
        except OSError:
            return False
        descriptors = array.array("i")
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(payload[: len(payload) // 4 * 4])
        if not data:
            return False
        given = None
        try:
            request = json.loads(data)
            given = self._do(request, descriptors)
            answer = {"ok": True, "pid": os.getpid()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            answer = {"ok": False, "error": "%s" % error}
            for descriptor in descriptors:
                os.close(descriptor)
        rights = []
        if given is not None:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [given]).tobytes())]
        try:
            client.sendmsg([json.dumps(answer).encode()], rights)
        except OSError:
            return False
        finally:
            if given is not None:
                os.close(given)
        return True

    def _do(self, request, descriptors):
        verb = request["do"]
        if verb == "tap":
            name = request["name"]
            if not name.startswith("tap-") or len(name) > 15:
                raise ValueError("a TAP's name begins with tap- and has at most 15 characters")
            return make_tap(self._control, name, self._bridge, self._mtu)
        if verb == "socket":
            return _tcp()
        if verb == "keep":
            self._kept.extend(descriptors)
        elif verb == "end":
            self._ended = True
        elif verb != "ping":
            raise ValueError("unknown request %r" % verb)
        return None


def _tcp():
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach()


def main(argv):
    """Set up, then serve."""
    listen_fd, uid, gid, address, mtu, bridge = argv
    enter(int(uid), int(gid))
    control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ip, prefix = address.split("/")
    make_bridge(control, bridge, ip, int(prefix), int(mtu))
    os.close(
        os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    )  # fails now rather than at the first VM
    Holder(socket.socket(fileno=int(listen_fd)), control, bridge, int(mtu)).run()


if __name__ == "__main__":
    main(sys.argv[1:])
