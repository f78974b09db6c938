"""The few rtnetlink messages that banger needs, by hand: links, one address, one route, the host's own addresses.

Standard library only and cheap to import. A `Route` speaks through any NETLINK_ROUTE socket, also one that
was opened in another network namespace and passed to us: the kernel acts where the socket was opened. Calls are synchronous; the
kernel answers before ``send`` returns.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Self

ADDRESS_GROUPS: Final = 0x10 | 0x40  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE
LINK_GROUP: Final = 0x1  # RTMGRP_LINK
NETCONF_GROUP: Final = 1 << 23  # RTNLGRP_IPV4_NETCONF: forwarding switched on or off
NETFILTER: Final = 12  # NETLINK_NETFILTER, which the socket module does not name
NFTABLES_GROUP: Final = 1 << 6  # NFNLGRP_NFTABLES of NETLINK_NETFILTER: a transaction of nft's
_NEWLINK, _DELLINK, _GETLINK, _NEWADDR, _NEWROUTE, _GETROUTE = 16, 17, 18, 20, 24, 26
_NEWNEIGHBOUR, _DELNEIGHBOUR = 28, 29
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _DUMP, _EXCLUSIVE_CREATE, _REPLACE_CREATE = 0x1, 0x4, 0x300, 0x600, 0x500
_ADDRESS, _IFNAME, _MTU, _MASTER, _LINKINFO, _AF_SPEC = 1, 3, 4, 10, 18, 26
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA = 1, 2, 4, 5
_PORT_LEARNING, _PORT_FLOOD, _PORT_ISOLATED = 8, 9, 33
_BRIDGE_FORWARD_DELAY, _BRIDGE_STP, _BRIDGE_MCAST_SNOOPING = 1, 5, 23
_NET_NS_FD, _VETH_PEER, _ADDRESS_GENERATION, _GENERATE_NONE = 28, 1, 8, 1
_INET_CONF, _CONF_FORWARDING, _CONF_ACCEPT_REDIRECTS, _CONF_SEND_REDIRECTS = 1, 1, 4, 6
_CONF_PROXY_ARP_PVLAN = 25
_SETNEIGHTBL, _NDTA_NAME, _NDTA_PARMS, _NDTPA_IFINDEX, _NDTPA_PROXY_DELAY = 67, 1, 6, 1, 13
_IFA_ADDRESS, _IFA_LOCAL, _RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_SOURCE = 1, 2, 1, 4, 5, 7
_NDA_DST, _NDA_LLADDR, _NUD_NOARP, _NUD_PERMANENT, _NTF_MASTER = 1, 2, 0x40, 0x80, 0x04
_AF_BRIDGE, _IFF_UP, _IFF_LOWER_UP = 7, 1, 0x10000
_TABLE_MAIN, _PROTO_STATIC, _TYPE_UNICAST, _TYPE_LOCAL = 254, 4, 1, 2
_TYPE_BROADCAST = 3
_SOL_NETLINK, _STRICT_CHECK = 270, 12
_ANSWER_BYTES = 1 << 18
_TIMEOUT_S = 5.0


class NetlinkError(OSError):
    """The kernel refused a request; ``errno`` says why, the text what was asked."""


@dataclass(frozen=True, slots=True)
class Link:
    """A link as the kernel shows it; ``forwards``: whether IPv4 packets that come in there are routed."""

    index: int
    name: str
    mac: bytes
    forwards: bool


def attribute(kind: int, value: bytes | int | str) -> bytes:
    """One attribute, padded to 4 bytes: an int is a u32, a str a zero-terminated string."""
    if isinstance(value, int):
        value = struct.pack("=I", value)
    elif isinstance(value, str):
        value = value.encode() + b"\0"
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds others."""
    return attribute(kind, b"".join(attributes))


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes in ``data`` by kind, without the nesting bits."""
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if not 4 <= length <= len(data):
            break
        found[kind & 0x3FFF] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


def _link(index: int, *attrs: bytes, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, change) + b"".join(attrs)


def _neighbour(family: int, index: int, state: int, flags: int = 0) -> bytes:
    return struct.pack("=BxxxiHBB", family, index, state, flags, 0)


def _byte(value: int) -> bytes:
    return struct.pack("=B", value)


class Route:
    """rtnetlink through ``channel``, a NETLINK_ROUTE socket that this object owns from now on."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._channel.settimeout(_TIMEOUT_S)
        self._sequence = 0

    @classmethod
    def here(cls) -> Route:
        """In this process' own network namespace."""
        return cls(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0))

    def close(self) -> None:
        """Close the socket."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_bridge(self, name: str, mac: bytes) -> None:
        """A bridge without spanning tree, delay or multicast snooping.

        Its own ``mac`` stays; else it would change with every port, and neighbours would be forgotten.
        """
        data = nested(
            _INFO_DATA,
            attribute(_BRIDGE_FORWARD_DELAY, 0),
            attribute(_BRIDGE_STP, 0),
            attribute(_BRIDGE_MCAST_SNOOPING, _byte(0)),
        )
        kind = nested(_LINKINFO, attribute(_INFO_KIND, b"bridge"), data)
        message = _link(0, attribute(_IFNAME, name), attribute(_ADDRESS, mac), kind)
        self._do(_NEWLINK, message, f"add bridge {name}", create=_EXCLUSIVE_CREATE)

    def add_veth(self, name: str, mac: bytes, peer: str, namespace: int, *, mtu: int) -> None:
        """A pair of links: ``name`` here, without IPv6, and ``peer`` in the network namespace of this descriptor. Both or none; both are down."""
        other = _link(
            0, attribute(_IFNAME, peer), attribute(_MTU, mtu), attribute(_NET_NS_FD, namespace)
        )
        data = nested(_INFO_DATA, attribute(_VETH_PEER, other))
        message = _link(
            0,
            attribute(_IFNAME, name),
            attribute(_ADDRESS, mac),
            attribute(_MTU, mtu),
            nested(_LINKINFO, attribute(_INFO_KIND, b"veth"), data),
        )
        self._do(_NEWLINK, message, f"add veth {name}", create=_EXCLUSIVE_CREATE)

    def links(self) -> dict[str, Link]:
        """All links by name."""
        found = {}
        for data in self._ask(_GETLINK, _link(0), "list links", dump=True):
            attrs = attributes(data[16:])
            inet = attributes(attributes(attrs.get(_AF_SPEC, b"")).get(socket.AF_INET, b""))
            conf = inet.get(_INET_CONF, b"")  # every setting, a u32 each
            name = attrs[_IFNAME].rstrip(b"\0").decode(errors="surrogateescape")
            forwards = len(conf) >= 4 and struct.unpack_from("=I", conf)[0] != 0
            index = int(struct.unpack_from("=i", data, 4)[0])
            found[name] = Link(index, name, attrs.get(_ADDRESS, b""), forwards)
        return found

    def index(self, name: str) -> int:
        """The interface number of ``name``; NetlinkError (ENODEV) if there is none."""
        for data in self._ask(_GETLINK, _link(0, attribute(_IFNAME, name)), f"find link {name}"):
            return int(struct.unpack_from("=i", data, 4)[0])
        raise NetlinkError(errno.ENODEV, f"find link {name}: no answer")

    def exists(self, name: str) -> bool:
        """Whether there is a link ``name``."""
        try:
            self.index(name)
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return False
            raise
        return True

    def has_carrier(self, name: str) -> bool:
        """Whether somebody serves link ``name`` (for a TAP: has it open)."""
        for data in self._ask(_GETLINK, _link(0, attribute(_IFNAME, name)), f"find link {name}"):
            return bool(struct.unpack_from("=I", data, 8)[0] & _IFF_LOWER_UP)
        return False

    def is_waiting_port(self, bridge: str, name: str) -> bool:
        """Whether link ``name`` is there, down, and on ``bridge``."""
        master = struct.pack("=I", self.index(bridge))
        try:
            found = self._ask(_GETLINK, _link(0, attribute(_IFNAME, name)), f"find link {name}")
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return False
            raise
        return any(
            attributes(data[16:]).get(_MASTER) == master
            and not struct.unpack_from("=I", data, 8)[0] & _IFF_UP
            for data in found
        )

    def set_link(
        self, name: str, *, up: bool | None = None, mtu: int | None = None, mac: bytes | None = None
    ) -> None:
        """Change state, MTU or address of a link."""
        attrs = [attribute(_MTU, mtu)] if mtu is not None else []
        attrs += [attribute(_ADDRESS, mac)] if mac is not None else []
        flags, change = (_IFF_UP if up else 0), (_IFF_UP if up is not None else 0)
        message = _link(self.index(name), *attrs, flags=flags, change=change)
        self._do(_NEWLINK, message, f"set link {name}")

    def forward_ipv4(self, name: str) -> None:
        """Let IPv4 packets that come in on ``name`` be routed; neither send nor believe redirects there.

        Only this link, by netlink: /proc/sys may be read-only, and it would open every other link too.
        """
        conf = nested(
            _INET_CONF,
            attribute(_CONF_FORWARDING, 1),
            attribute(_CONF_ACCEPT_REDIRECTS, 0),
            attribute(_CONF_SEND_REDIRECTS, 0),
        )
        message = _link(self.index(name), nested(_AF_SPEC, nested(socket.AF_INET, conf)))
        self._do(_NEWLINK, message, f"forward on {name}")

    def answer_for_neighbours(self, name: str) -> None:
        """Answer ARP on ``name``, at once, for addresses that are reached by that very link: its neighbours speak through this host alone."""
        index = self.index(name)
        conf = nested(_INET_CONF, attribute(_CONF_PROXY_ARP_PVLAN, 1))
        message = _link(index, nested(_AF_SPEC, nested(socket.AF_INET, conf)))
        self._do(_NEWLINK, message, f"answer ARP on {name}")
        no_delay = attribute(_NDTPA_PROXY_DELAY, struct.pack("=Q", 0))
        table = struct.pack("=Bxxx", socket.AF_INET) + attribute(_NDTA_NAME, "arp_cache")
        table += nested(_NDTA_PARMS, attribute(_NDTPA_IFINDEX, index), no_delay)
        self._do(_SETNEIGHTBL, table, f"answer ARP on {name} at once")

    def switch_forwarding(self, name: str, *, on: bool) -> None:
        """Whether IPv4 packets that come in on ``name`` are routed; nothing else of that link changes."""
        conf = nested(_INET_CONF, attribute(_CONF_FORWARDING, int(on)))
        message = _link(self.index(name), nested(_AF_SPEC, nested(socket.AF_INET, conf)))
        self._do(_NEWLINK, message, f"switch forwarding of {name}")

    def disable_ipv6(self, name: str) -> None:
        """Give link ``name`` no IPv6 address by itself; nothing happens where the kernel has no IPv6."""
        conf = nested(socket.AF_INET6, attribute(_ADDRESS_GENERATION, _byte(_GENERATE_NONE)))
        try:
            message = _link(self.index(name), nested(_AF_SPEC, conf))
            self._do(_NEWLINK, message, f"no IPv6 on {name}")
        except NetlinkError as error:
            if error.errno not in {errno.EAFNOSUPPORT, errno.EOPNOTSUPP}:
                raise

    def add_closed_port(self, bridge: str, name: str) -> None:
        """Make link ``name`` a port of ``bridge`` that reaches no other such port and learns no addresses; of unicast frames it gets only
        those for a MAC that `fix_neighbour` put there.
        """
        index = self.index(name)
        join = _link(index, attribute(_MASTER, self.index(bridge)))
        self._do(_NEWLINK, join, f"put {name} on {bridge}")
        flags = [attribute(_PORT_ISOLATED, _byte(1))]
        flags += [attribute(each, _byte(0)) for each in (_PORT_LEARNING, _PORT_FLOOD)]
        data = nested(_INFO_SLAVE_DATA, *flags)
        close = _link(
            index, nested(_LINKINFO, attribute(_INFO_SLAVE_KIND, b"bridge"), data)
        )  # the port must be there first: two messages
        self._do(_NEWLINK, close, f"close port {name}")

    def fix_neighbour(self, bridge: str, name: str, mac: bytes, address: str) -> None:
        """Send frames for ``mac`` to port ``name`` of ``bridge``, and packets for IPv4 ``address`` to ``mac``, without asking by ARP."""
        packed = attribute(_NDA_LLADDR, mac)
        behind = _neighbour(_AF_BRIDGE, self.index(name), _NUD_NOARP, _NTF_MASTER) + packed
        self._do(_NEWNEIGHBOUR, behind, f"fix {mac.hex(':')} on {name}", create=_REPLACE_CREATE)
        known = _neighbour(socket.AF_INET, self.index(bridge), _NUD_PERMANENT)
        known += attribute(_NDA_DST, socket.inet_aton(address)) + packed
        self._do(_NEWNEIGHBOUR, known, f"fix neighbour {address}", create=_REPLACE_CREATE)

    def forget_neighbour(self, bridge: str, address: str) -> None:
        """Undo `fix_neighbour` for ``address`` (the port's part goes with the port); idempotent."""
        known = _neighbour(socket.AF_INET, self.index(bridge), 0)
        known += attribute(_NDA_DST, socket.inet_aton(address))
        try:
            self._do(_DELNEIGHBOUR, known, f"forget neighbour {address}")
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise

    def delete_link(self, name: str) -> bool:
        """Remove a link; False if it was gone."""
        try:
            self._do(_DELLINK, _link(0, attribute(_IFNAME, name)), f"delete link {name}")
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return False
            raise
        return True

    def rename(self, name: str, new: str) -> None:
        """Call the link ``name``, which is down, ``new``."""
        message = _link(self.index(name), attribute(_IFNAME, new))
        self._do(_NEWLINK, message, f"rename {name} to {new}")

    def ports(self, bridge: str) -> dict[str, bool]:
        """Names of the links on ``bridge``, and whether each is up."""
        master = struct.pack("=I", self.index(bridge))
        found = {}
        for data in self._ask(_GETLINK, _link(0), "list links", dump=True):
            attrs = attributes(data[16:])
            if attrs.get(_MASTER) == master:
                name = attrs[_IFNAME].rstrip(b"\0").decode()
                found[name] = bool(struct.unpack_from("=I", data, 8)[0] & _IFF_UP)
        return found

    def add_address(self, name: str, address: str, prefix_length: int) -> None:
        """Give link ``name`` an IPv4 address."""
        packed = socket.inet_aton(address)
        message = struct.pack("=BBBBi", socket.AF_INET, prefix_length, 0, 0, self.index(name))
        message += attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
        self._do(_NEWADDR, message, f"add address {address} to {name}", create=_EXCLUSIVE_CREATE)

    def add_default_route(self, gateway: str, name: str) -> None:
        """Send everything else to ``gateway`` over link ``name``."""
        message = struct.pack(
            "=BBBBBBBBI", socket.AF_INET, 0, 0, 0, _TABLE_MAIN, _PROTO_STATIC, 0, _TYPE_UNICAST, 0
        )
        message += attribute(_RTA_GATEWAY, socket.inet_aton(gateway))
        message += attribute(_RTA_OIF, self.index(name))
        self._do(_NEWROUTE, message, f"add default route by {gateway}", create=_EXCLUSIVE_CREATE)

    def add_route(self, network: tuple[str, int], gateway: str, name: str, *, source: str) -> None:
        """Send packets for ``network`` to ``gateway`` over link ``name``; the host's own have the address ``source``."""
        address, length = network
        message = struct.pack(
            "=BBBBBBBBI",
            socket.AF_INET,
            length,
            0,
            0,
            _TABLE_MAIN,
            _PROTO_STATIC,
            0,
            _TYPE_UNICAST,
            0,
        )
        message += attribute(_RTA_DST, socket.inet_aton(address))
        message += attribute(_RTA_GATEWAY, socket.inet_aton(gateway))
        message += attribute(_RTA_SOURCE, socket.inet_aton(source))
        message += attribute(_RTA_OIF, self.index(name))
        self._do(_NEWROUTE, message, f"add route to {address}", create=_EXCLUSIVE_CREATE)

    def routes(self) -> list[tuple[str, int, int]]:
        """All IPv4 routes in any table but broadcast ones: (address, prefix length, number of the link or 0)."""
        message = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)
        found = []
        for data in self._ask(_GETROUTE, message, "list routes", dump=True):
            family, length, *_, kind, _flags = struct.unpack_from("=BBBBBBBBI", data)
            if family == socket.AF_INET and kind != _TYPE_BROADCAST:
                attrs = attributes(data[12:])
                link = int(struct.unpack("=i", attrs.get(_RTA_OIF, bytes(4)))[0])
                found.append((socket.inet_ntoa(attrs.get(_RTA_DST, bytes(4))), length, link))
        return found

    def local_networks(self) -> list[tuple[str, int]]:
        """What this namespace answers to: IPv4 (address, prefix length) of all routes of type local, in any table, sorted.

        That is every interface's addresses, loopback's network and what an administrator routes to the host besides.
        """
        self._channel.setsockopt(_SOL_NETLINK, _STRICT_CHECK, 1)  # the kernel filters by type
        message = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 0, 0, 0, _TYPE_LOCAL, 0)
        found = set()
        for data in self._ask(_GETROUTE, message, "list local routes", dump=True):
            family, length, *_, kind, _flags = struct.unpack_from("=BBBBBBBBI", data)
            if family == socket.AF_INET and kind == _TYPE_LOCAL:
                address = attributes(data[12:]).get(_RTA_DST, bytes(4))
                found.add((address, length))
        return [(socket.inet_ntoa(address), length) for address, length in sorted(found)]

    def _do(self, kind: int, message: bytes, what: str, *, create: int = 0) -> None:
        flags = _REQUEST | _ACK | create
        for _ in self._answers(kind, flags, message, what):
            pass

    def _ask(self, kind: int, message: bytes, what: str, *, dump: bool = False) -> list[bytes]:
        flags = _REQUEST | (_DUMP if dump else _ACK)
        return list(self._answers(kind, flags, message, what))

    def _answers(self, kind: int, flags: int, message: bytes, what: str) -> Iterator[bytes]:
        self._sequence += 1
        return exchange(self._channel, self._sequence, kind, flags, message, what)


def exchange(
    channel: socket.socket, sequence: int, kind: int, flags: int, message: bytes, what: str
) -> Iterator[bytes]:
    """Send a request and give the payload of each answer to it; NetlinkError with ``what`` was asked. Of any netlink family."""
    header = struct.pack("=IHHII", 16 + len(message), kind, flags, sequence, 0)
    channel.send(header + message)
    while True:
        for answer, of, data in _messages(channel.recv(_ANSWER_BYTES)):
            if of != sequence:
                continue
            if answer == _DONE:
                return
            if answer != _ERROR:
                yield data
                continue
            code = -struct.unpack_from("=i", data)[0]
            if code:
                raise NetlinkError(code, f"{what}: {os.strerror(code)}")
            return


def _messages(data: bytes) -> Iterable[tuple[int, int, bytes]]:
    while len(data) >= 16:
        length, kind, _flags, sequence, _port = struct.unpack_from("=IHHII", data)
        if not 16 <= length <= len(data):
            return
        yield kind, sequence, data[16:length]
        data = data[(length + 3) & ~3 :]
