"""A host of the test's own to build networks on, machines beyond it, and guests: all of them network namespaces in threads.

Nothing here touches the real host's links; everything ends with its threads and descriptors. Needs root.
"""

import contextlib
import ctypes
import fcntl
import os
import select
import socket
import struct
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from banger.host.tun import VNET_HEADER, open_tap

CLONE_NEWNET = 0x40000000
TUNSETOFFLOAD = 0x400454D0
CSUM_TSO4 = 0x01 | 0x02
HEADER = bytes(10)  # struct virtio_net_hdr
HOST_ADDRESS = "192.0.2.2"
HOST_WAN = "198.51.100.1"
BEYOND = "198.51.100.2"
ELSEWHERE = "203.0.113.7"
METADATA = "169.254.169.254"
ECHO_PORT, DNS_PORT = 7, 53
PATIENCE_S = 30
"""For what comes: the pump and the echo are threads of the tests', and the uplink is a process. What must not come is waited for as each test says."""
IP_PKTINFO = 8

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result):
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def unshare_net():
    _check(_libc.unshare(CLONE_NEWNET))


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _wait_for_carrier(link):
    """A worker of the kernel takes the word off its routes, which `helper_host.host_state` has."""
    argv, end = ["ip", "route", "show", "dev", link], time.monotonic() + 30
    while b"linkdown" in subprocess.run(argv, check=True, capture_output=True).stdout:
        assert time.monotonic() < end, f"{link} has no carrier"
        time.sleep(0.01)


class Namespace:
    """A network namespace in a thread; ``run`` calls something inside. Sockets made there stay there."""

    def __init__(self):
        self._thread = ThreadPoolExecutor(1, initializer=unshare_net)
        self.tid = self.run(threading.get_native_id)
        self.run(ip, "link", "set", "lo", "up")

    def run(self, work, *arguments):
        return self._thread.submit(work, *arguments).result(60)

    def close(self):
        self._thread.shutdown()


class Echo:
    """Answers TCP and UDP on port 7 and DNS on port 53 of all addresses of a namespace; keeps what was sent by UDP and who connected."""

    def __init__(self, namespace=None):
        run = namespace.run if namespace else lambda work, *a: work(*a)
        self.heard, self.connected = [], []
        self._tcp = run(self._bound, socket.SOCK_STREAM, ECHO_PORT)
        self._udp = run(self._bound, socket.SOCK_DGRAM, ECHO_PORT)
        self._dns = run(self._bound, socket.SOCK_DGRAM, DNS_PORT)
        self._tcp.listen(64)
        self._wake, self._end = os.pipe()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _bound(self, kind, port):
        opened = socket.socket(socket.AF_INET, kind)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if kind == socket.SOCK_DGRAM:  # answer from the address that was asked
            opened.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        opened.bind(("0.0.0.0", port))
        return opened

    def _serve(self):
        clients = {}
        watched = {self._wake: None, **{s.fileno(): s for s in (self._tcp, self._udp, self._dns)}}
        while True:
            for number in select.select([*watched, *clients], [], [])[0]:
                if number == self._wake:
                    for client in clients.values():
                        client.close()
                    return
                if number == self._tcp.fileno():
                    client, peer = self._tcp.accept()
                    clients[client.fileno()] = client
                    self.connected.append(peer)
                elif number in clients:
                    with contextlib.suppress(OSError):
                        data = clients[number].recv(65536)
                        if data:
                            clients[number].sendall(data)
                            continue
                    clients.pop(number).close()
                else:
                    self._answer(watched[number])

    def _answer(self, opened):
        data, ancillary, _, peer = opened.recvmsg(65536, 1024)
        self.heard.append(data)
        (info,) = [payload for _, kind, payload in ancillary if kind == IP_PKTINFO]
        source = struct.pack("=I4s4s", 0, info[4:8], bytes(4))
        reply = data if opened is self._udp else data[:2] + b"\x81\x80" + data[4:]
        with contextlib.suppress(OSError):
            opened.sendmsg([reply], [(socket.IPPROTO_IP, IP_PKTINFO, source)], 0, peer)

    def close(self):
        os.write(self._end, b"x")
        self._thread.join()
        for opened in (self._tcp, self._udp, self._dns):
            opened.close()
        os.close(self._wake)
        os.close(self._end)


def name_servers():
    with open("/etc/resolv.conf") as file:
        return [line.split()[1] for line in file if line.startswith("nameserver")]


class OwnHost:
    """The calling thread is in a network namespace that plays the host, until ``close``; beyond it is all the rest of the world."""

    def __init__(self):
        self._real = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self.beyond = Namespace()
        unshare_net()
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self):
        ip("link", "set", "lo", "up")
        ip("link", "add", "lan0", "type", "bridge")
        ip("addr", "add", f"{HOST_ADDRESS}/24", "dev", "lan0")
        ip("link", "set", "lan0", "up")
        ip(
            "link",
            "add",
            "wan0",
            "type",
            "veth",
            "peer",
            "name",
            "wan1",
            "netns",
            str(self.beyond.tid),
        )
        ip("addr", "add", f"{HOST_WAN}/24", "dev", "wan0")
        ip("link", "set", "wan0", "up")
        inside = self.beyond.run
        inside(ip, "addr", "add", f"{BEYOND}/24", "dev", "wan1")
        inside(ip, "link", "set", "wan1", "up")
        _wait_for_carrier("wan0")
        for address in (ELSEWHERE, METADATA, *(a for a in name_servers() if ":" not in a)):
            if not address.startswith("127."):
                inside(ip, "addr", "add", f"{address}/32", "dev", "lo")
        ip("route", "add", "default", "via", BEYOND)
        with open("/proc/sys/net/ipv4/ping_group_range", "w") as file:
            file.write("0 2147483647")
        self.world = Echo(self.beyond)
        self.services = Echo()

    def close(self):
        for part in ("world", "services"):
            if hasattr(self, part):
                getattr(self, part).close()
        self.beyond.close()
        _check(_libc.setns(self._real, CLONE_NEWNET))
        os.close(self._real)


class LinuxGuest:
    """A guest with Linux' own network stack, whose NIC is plugged into a TAP of banger's by a pump in a thread."""

    def __init__(self, attachment):
        self.tap, self.lease = attachment.tap_fd, attachment.lease
        self.namespace = Namespace()
        self._nic = self.namespace.run(lambda: open_tap("eth0", flags=VNET_HEADER))
        for descriptor in (self.tap, self._nic):
            fcntl.ioctl(descriptor, TUNSETOFFLOAD, CSUM_TSO4)
        inside = self.namespace.run
        mtu = str(attachment.mtu)
        inside(ip, "link", "set", "eth0", "address", self.lease.mac, "mtu", mtu, "up")
        inside(ip, "addr", "add", f"{self.lease.ip}/{self.lease.prefix_length}", "dev", "eth0")
        inside(ip, "route", "add", "default", "via", self.lease.gateway)
        self._wake, self._end = os.pipe()
        self._thread = threading.Thread(target=self._pump, daemon=True)
        self._thread.start()

    def _pump(self):
        while True:
            for number in select.select([self._wake, self.tap, self._nic], [], [])[0]:
                if number == self._wake:
                    return
                other = self._nic if number == self.tap else self.tap
                try:
                    while True:
                        frame = os.read(number, 70000)
                        with contextlib.suppress(OSError):
                            os.write(other, frame)
                except BlockingIOError:
                    continue
                except OSError:  # the TAP was taken away
                    return

    def connect(self, address, port=ECHO_PORT, timeout=PATIENCE_S):
        """A TCP connection out of the guest."""
        opened = self.namespace.run(socket.socket)
        opened.settimeout(timeout)
        try:
            opened.connect((address, port))
        except BaseException:
            opened.close()
            raise
        return opened

    def tcp_echo(self, address, text=b"hello", timeout=PATIENCE_S):
        with self.connect(address, timeout=timeout) as opened:
            opened.sendall(text)
            return opened.recv(len(text))

    def udp_echo(self, address, text, port=ECHO_PORT, timeout=PATIENCE_S):
        with self.namespace.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as opened:
            opened.settimeout(timeout)
            opened.sendto(text, (address, port))
            return opened.recv(65536)

    def listen(self, port):
        """A listening TCP socket in the guest."""
        opened = self.namespace.run(socket.socket)
        opened.bind(("0.0.0.0", port))
        opened.listen(8)
        opened.settimeout(PATIENCE_S)
        return opened

    def serve_udp(self, port):
        """A UDP socket bound in the guest."""
        opened = self.namespace.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        opened.bind(("0.0.0.0", port))
        opened.settimeout(PATIENCE_S)
        return opened

    def close(self):
        os.write(self._end, b"x")
        self._thread.join()
        for descriptor in (self.tap, self._nic, self._wake, self._end):
            os.close(descriptor)
        self.namespace.close()


def mac(text):
    return bytes.fromhex(text.replace(":", ""))


def ethernet(target, source, kind, payload):
    return mac(target) + mac(source) + kind.to_bytes(2, "big") + payload


def arp(sender_mac, sender_ip, target_ip, operation=1):
    return struct.pack(
        ">HHBBH6s4s6s4s", 1, 0x0800, 6, 4, operation,
        mac(sender_mac), socket.inet_aton(sender_ip), bytes(6), socket.inet_aton(target_ip),
    )  # fmt: skip


def checksum(data):
    total = sum(struct.unpack(f">{len(data) // 2}H", data + b"\0" * (len(data) % 2)))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def ipv4(source, target, protocol, payload):
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0,
                       socket.inet_aton(source), socket.inet_aton(target))  # fmt: skip
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + payload


def udp(port, payload, source_port=4000):
    return struct.pack(">HHHH", source_port, port, 8 + len(payload), 0) + payload


def ping(number=1):
    body = struct.pack(">BBHHH", 8, 0, 0, 77, number) + b"banger!!"
    return body[:2] + checksum(body).to_bytes(2, "big") + body[4:]


def tcp(source, target, source_port, port, flags):
    body = struct.pack(">HHIIBBHHH", source_port, port, 1, 0, 0x50, flags, 1000, 0, 0)
    pseudo = (
        socket.inet_aton(source) + socket.inet_aton(target) + struct.pack(">BBH", 0, 6, len(body))
    )
    return body[:16] + checksum(pseudo + body).to_bytes(2, "big") + body[18:]


class Wire:
    """Hand-made frames on a TAP of banger's."""

    def __init__(self, attachment):
        self.tap, self.lease = attachment.tap_fd, attachment.lease
        self.gateway_mac = None

    def send(self, frame):
        os.write(self.tap, HEADER + frame)

    def frames(self, timeout):
        """Frames that come out, until nothing has come for ``timeout`` seconds."""
        while select.select([self.tap], [], [], timeout)[0]:
            yield os.read(self.tap, 70000)[10:]

    def wait_for(self, wanted, timeout=PATIENCE_S):
        """The first frame for which ``wanted`` is true, and all that came before it."""
        before = []
        for frame in self.frames(timeout):
            if wanted(frame):
                return frame, before
            before.append(frame)
        raise AssertionError(f"no such frame came; others were {before}")

    def resolve(self, address=None):
        """Ask for the gateway's MAC, again and again as every guest does: the kernel needs a moment to bring a bridge's first port up."""
        asked = arp(self.lease.mac, self.lease.ip, address or self.lease.gateway)
        for _ in range(300):
            self.send(ethernet("ff:ff:ff:ff:ff:ff", self.lease.mac, 0x0806, asked))
            for frame in self.frames(0.1):
                if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\2":
                    self.gateway_mac = frame[22:28].hex(":")
                    return
        raise AssertionError("nobody answers ARP")

    def send_ipv4(self, packet, source=None, target=None):
        self.send(ethernet(target or self.gateway_mac, source or self.lease.mac, 0x0800, packet))
