"""banger-helper on a host of the test's own: what it makes, for whom, and that nothing of it stays."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from banger.model.errors import BangerError, HostLacksError, RefusedError
from banger.network.uplinks import service
from banger.network.uplinks.service import UplinkService
from banger.network.uplinks.slots import SlotPlan
from banger.wire.helper import ask
from tests.framework.as_user import as_user, own_namespace
from tests.framework.helper_host import (
    GROUP,
    OTHER,
    STRANGER,
    USER,
    asked,
    call,
    forwards,
    host_state,
    links,
    running_helper,
    tables,
)
from tests.framework.net_host import BEYOND, HOST_ADDRESS, Echo, Namespace, ip
from tests.framework.ordinary_user import OrdinaryUser, tun_mode

TABLE = "table inet banger_host"
PATIENCE_S = 30


@pytest.fixture
async def helper(own_host, short_dir):
    async with running_helper(short_dir) as running:
        yield running


async def as_member(uid, work, *arguments):
    """Done by a user in the helper's group, while the helper serves."""
    return await asyncio.to_thread(as_user, uid, work, *arguments, groups=[GROUP])


def in_own_namespace(path, op="uplink.attach", **arguments):
    return asked(path, op, own_namespace(), **arguments)


def attach_twice(path):
    namespace = own_namespace()
    return asked(path, "uplink.attach", namespace), asked(path, "uplink.attach", namespace)


def attach_and_look(path):
    """The reply, and how the links look in the namespace that got one."""
    reply = asked(path, "uplink.attach", own_namespace())
    seen = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    return reply, seen


async def until(condition, timeout_s=PATIENCE_S):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


async def test_it_says_who_is_there(helper):
    result = await ask(helper.socket, "hello")
    assert (result["protocol"], result["uid"]) == (1, 0)
    assert {"hello", "list", "uplink.attach", "uplink.detach"} <= set(result["verbs"])
    reply = await as_member(USER, asked, helper.socket, "hello")
    assert reply["result"]["uid"] == USER


async def test_a_member_gets_a_link_of_a_slot_and_all_goes_with_the_namespace(helper):
    before = host_state()
    reply, seen = await as_member(USER, attach_and_look, helper.socket)
    assert reply["ok"], reply
    assert "uplink0" in seen
    found = reply["result"]
    assert found["link"] == f"banger-up{found['slot']}"
    assert found["uid"] == USER
    # The child was the namespace's only process: the kernel removes the link, the helper its entries.
    await until(lambda: host_state() == before)
    assert (await ask(helper.socket, "list"))["uplinks"] == []


async def test_what_attach_makes_is_what_detach_takes_back(helper):
    before = host_state()
    with_namespace = Uplinked(helper)
    try:
        found = await with_namespace.attach()
        assert TABLE in tables()
        assert found["link"] in links()
        assert forwards(found["link"])
        assert forwards("wan0")  # replies come in there
        assert not forwards("lo")
        await ask(helper.socket, "uplink.detach", slot=found["slot"])
        await ask(helper.socket, "uplink.detach", slot=found["slot"])
    finally:
        with_namespace.close()
    assert host_state() == before


class Uplinked:
    """A namespace of root's own user namespace, in a process that lives until `close`."""

    def __init__(self, helper):
        self.helper = helper
        argv = [
            "unshare",
            "--user",
            "--map-root-user",
            "--net",
            "--",
            "sh",
            "-c",
            "echo ready; read end",
        ]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == b"ready\n"
        self.namespace = os.open(f"/proc/{self.process.pid}/ns/net", os.O_RDONLY)

    async def attach(self):
        return await ask(self.helper.socket, "uplink.attach", descriptors=[self.namespace])

    def inside(self, *argv):
        return subprocess.run(
            ["nsenter", f"--user=/proc/{self.process.pid}/ns/user", f"--net=/proc/{self.process.pid}/ns/net",
             "--preserve-credentials", "--", *argv],
            check=False, capture_output=True, text=True,
        )  # fmt: skip

    def set_up(self, found, guest=None):
        """As a daemon does it; with ``guest`` an address of the guests' prefix is there too."""
        host, own = (str(int_ip(found["transfer"], n)) for n in (0, 1))
        for words in (
            ["addr", "add", f"{own}/31", "dev", "uplink0"],
            ["link", "set", "uplink0", "up"],
            ["link", "set", "lo", "up"],
            ["route", "add", "default", "via", host],
            *([["addr", "add", f"{guest}/32", "dev", "lo"]] if guest else []),
        ):
            done = self.inside("ip", *words)
            assert done.returncode == 0, done.stderr
        return host

    def talk(self, source, address, port=7, kind="tcp", *, timeout_s=1):
        """What an echo server at ``address`` says to somebody with the address ``source``; empty if nothing in ``timeout_s``."""
        script = (
            "import socket, sys\n"
            "s = socket.socket(socket.AF_INET, socket.SOCK_STREAM if sys.argv[4] == 'tcp' else socket.SOCK_DGRAM)\n"
            "s.settimeout(float(sys.argv[5])); s.bind((sys.argv[1], 0)); s.connect((sys.argv[2], int(sys.argv[3])))\n"
            "s.send(b'hello from a guest'); print(s.recv(99).decode(errors='replace'), end='')\n"
        )
        return self.inside(
            sys.executable, "-I", "-c", script, source, address, str(port), kind, str(timeout_s)
        ).stdout

    def close(self):
        os.close(self.namespace)
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def int_ip(network, number):
    import ipaddress

    return ipaddress.IPv4Network(network)[number]


@pytest.fixture
async def uplinked(helper):
    made = []

    async def make():
        made.append(Uplinked(helper))
        return made[-1]

    yield make
    for each in made:
        each.close()
    await until(lambda: not [name for name in links() if name.startswith("banger-up")])


async def in_thread(work, *arguments, **named):
    return await asyncio.to_thread(work, *arguments, **named)


async def ready(uplinked):
    one = await uplinked()
    found = await one.attach()
    guest = str(int_ip(found["guests"], 16))
    one.set_up(found, guest)
    return one, found, guest


async def test_guests_are_masqueraded_to_the_world_and_reach_nothing_of_the_host(
    uplinked, own_host
):
    one, found, guest = await ready(uplinked)
    assert one.talk(guest, BEYOND, timeout_s=PATIENCE_S) == "hello from a guest"
    assert one.talk(guest, BEYOND, kind="udp", timeout_s=PATIENCE_S) == "hello from a guest"
    assert {peer[0] for peer in own_host.world.connected} == {"198.51.100.1"}  # masqueraded
    gateway = str(int_ip(found["transfer"], 0))
    for address in (HOST_ADDRESS, "198.51.100.1", gateway):
        for kind in ("tcp", "udp"):
            assert one.talk(guest, address, kind=kind) == ""
    assert own_host.services.connected == []
    assert own_host.services.heard == []


@pytest.mark.parametrize("address", ["169.254.169.254", "127.0.0.1", "224.0.0.1"])
async def test_metadata_loopback_and_multicast_are_closed(uplinked, own_host, address):
    one, _, guest = await ready(uplinked)
    before = len(own_host.world.heard), len(own_host.services.heard)
    one.inside("ip", "route", "add", address, "dev", "uplink0")
    one.talk(guest, address, kind="udp")
    assert one.talk(guest, BEYOND, kind="udp", timeout_s=PATIENCE_S) == "hello from a guest"
    assert own_host.services.heard == []
    assert len(own_host.world.heard) == before[0] + 1


async def test_a_source_that_is_not_its_own_goes_nowhere(uplinked, own_host):
    one, _, _guest = await ready(uplinked)
    two, _, other_guest = await ready(uplinked)
    for lie in ("203.0.113.9", other_guest, "192.0.2.77"):
        one.inside("ip", "addr", "add", f"{lie}/32", "dev", "lo")
        assert one.talk(lie, BEYOND, kind="udp") == ""
    assert two.talk(other_guest, BEYOND, timeout_s=PATIENCE_S) == "hello from a guest"
    assert own_host.world.heard == []


async def test_two_uplinks_do_not_reach_each_other(uplinked):
    one, _, guest = await ready(uplinked)
    two, found, other_guest = await ready(uplinked)
    script = "import socket,time; s=socket.create_server(('0.0.0.0', 7)); print('up', flush=True); s.accept(); print('came', flush=True)"
    server = subprocess.Popen(
        ["nsenter", f"--user=/proc/{two.process.pid}/ns/user", f"--net=/proc/{two.process.pid}/ns/net",
         "--preserve-credentials", "--", sys.executable, "-I", "-c", script],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert server.stdout.readline() == b"up\n"
        for address in (other_guest, str(int_ip(found["transfer"], 1))):
            assert one.talk(guest, address) == ""
        with socket.create_connection((other_guest, 7), timeout=PATIENCE_S):  # the host's root may
            assert server.stdout.readline() == b"came\n"
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def connects(address, port):
    with socket.socket() as opened:
        opened.settimeout(2)
        return opened.connect_ex((address, port)) == 0


async def test_on_the_host_only_its_owner_and_root_reach_an_uplinks_guests(uplinked):
    one, _, guest = await ready(uplinked)
    script = "import socket; s=socket.create_server(('0.0.0.0', 7), backlog=9); print('up', flush=True); input()"
    server = subprocess.Popen(
        ["nsenter", f"--user=/proc/{one.process.pid}/ns/user", f"--net=/proc/{one.process.pid}/ns/net",
         "--preserve-credentials", "--", sys.executable, "-I", "-c", script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert server.stdout.readline() == b"up\n"
        assert connects(guest, 7)
        assert not as_user(STRANGER, connects, guest, 7)
    finally:
        server.communicate(b"\n")


async def test_names_are_asked_of_the_hosts_resolver(uplinked, own_host, helper):
    one, found, guest = await ready(uplinked)
    gateway = str(int_ip(found["transfer"], 0))
    assert found["resolver"] == BEYOND
    said = one.talk(guest, gateway, 53, "udp", timeout_s=PATIENCE_S)
    assert said.startswith("he")  # the echo's answer to a question
    assert own_host.world.heard == [b"hello from a guest"]


async def test_a_resolver_on_an_address_of_the_hosts_own_is_asked_too(own_host, short_dir):
    async with running_helper(short_dir, resolver=lambda: HOST_ADDRESS) as helper:
        one = Uplinked(helper)
        try:
            found = await one.attach()
            guest = str(int_ip(found["guests"], 16))
            gateway = one.set_up(found, guest)
            assert one.talk(guest, gateway, 53, "udp", timeout_s=PATIENCE_S).startswith("he")
            assert one.talk(guest, HOST_ADDRESS, 53, "udp") == ""  # not by its own address
            assert one.talk(guest, gateway, 7, "udp") == ""
            assert own_host.services.heard == [b"hello from a guest"]
        finally:
            one.close()


async def test_a_resolver_on_the_hosts_loopback_is_asked_by_the_helper_itself(own_host, short_dir):
    before = host_state()
    own_host.services.close()  # it has port 53 of every address
    loopback = own_host_dns("127.0.0.1")
    async with running_helper(short_dir, resolver=lambda: "127.0.0.1") as helper:
        one = Uplinked(helper)
        try:
            found = await one.attach()
            guest = str(int_ip(found["guests"], 16))
            gateway = one.set_up(found, guest)
            for kind in ("udp", "tcp"):
                said = await in_thread(one.talk, guest, gateway, 53, kind, timeout_s=PATIENCE_S)
                assert said.startswith("answer")
            assert await in_thread(one.talk, guest, gateway, 7) == ""
            await ask(helper.socket, "uplink.detach", slot=found["slot"])
        finally:
            one.close()
            loopback()
    own_host.services = Echo()
    assert host_state() == before


def own_host_dns(address):
    """A resolver of sorts on loopback alone; how to end it."""
    udp, tcp = (socket.socket(socket.AF_INET, kind) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM))  # fmt: skip
    for each in (udp, tcp):
        each.bind((address, 53))
    tcp.listen(8)

    def serve_udp():
        with contextlib.suppress(OSError):
            while True:
                data, peer = udp.recvfrom(999)
                if data == b"end":
                    return
                udp.sendto(b"answer to " + data, peer)

    def serve_tcp():
        with contextlib.suppress(OSError):
            while True:
                client, _ = tcp.accept()
                with client:
                    client.sendall(b"answer to " + client.recv(999))

    threads = [threading.Thread(target=each, daemon=True) for each in (serve_udp, serve_tcp)]
    for each in threads:
        each.start()

    def end():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"end", (address, 53))
        tcp.shutdown(socket.SHUT_RDWR)
        for each in threads:
            each.join()
        udp.close()
        tcp.close()

    return end


async def test_ipv6_is_dropped(uplinked):
    one, found, _ = await ready(uplinked)
    shown = subprocess.run(
        ["ip", "-6", "addr", "show", "dev", found["link"]],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown == ""
    ip("-6", "addr", "add", "fd00::1/64", "dev", found["link"], "nodad")
    one.inside("ip", "-6", "addr", "add", "fd00::2/64", "dev", "uplink0", "nodad")
    ping = one.inside("ping", "-6", "-c", "1", "-W", "1", "fd00::1") if has_ping() else None
    assert ping is None or ping.returncode != 0


def has_ping():
    import shutil

    return shutil.which("ping") is not None


async def test_attaching_twice_gives_the_same(helper):
    first, second = await as_member(USER, attach_twice, helper.socket)
    assert first == second
    assert first["ok"]


def nft(*words):
    return subprocess.run(["nft", *words], capture_output=True, text=True, check=True).stdout


def banger_host():
    """The host's table as nft lists it; empty if it is not there."""
    return nft("list", "ruleset").partition(TABLE)[2]


async def test_one_table_whatever_the_number_of_uplinks(uplinked):
    rules = set()
    for _ in range(3):
        await ready(uplinked)
        done = subprocess.run(
            ["nft", "-a", "list", "table", "inet", "banger_host"],
            capture_output=True,
            text=True,
            check=True,
        )
        rules.add(sum(" handle " in line for line in done.stdout.splitlines()))
    assert len(rules) == 1


async def only_nft_is_heard(helper):
    """News of links, still on their way, would have the table looked at too."""
    helper.service._watches[0].close()
    await until(lambda: not helper.service._tasks)


async def nothing_is_heard(helper):
    """What the service does next is done for who asks."""
    helper.service._watches[1].close()
    await only_nft_is_heard(helper)


@pytest.mark.parametrize(
    "command",
    ["flush ruleset", "flush table inet banger_host", "delete chain inet banger_host input"],
)
async def test_a_firewall_that_is_loaded_anew_takes_nothing_from_guests_and_opens_nothing(
    uplinked, own_host, helper, command
):
    """Debian's nftables.conf begins with ``flush ruleset``."""
    one, _, guest = await ready(uplinked)
    await only_nft_is_heard(helper)
    whole = banger_host()
    nft(*command.split())
    await until(lambda: banger_host() == whole, 30)
    assert await in_thread(one.talk, guest, BEYOND, timeout_s=PATIENCE_S) == "hello from a guest"
    assert {peer[0] for peer in own_host.world.connected} == {"198.51.100.1"}
    assert await in_thread(one.talk, guest, HOST_ADDRESS) == ""
    assert own_host.services.connected == []


async def test_a_change_of_others_rules_and_our_own_are_no_reason_to_make_ours_anew(
    uplinked, helper, monkeypatch
):
    await ready(uplinked)
    await only_nft_is_heard(helper)
    applied, read = [], []
    apply, text = service.nft.apply, service.nft.text

    async def noted(rules, *rest):
        applied.append(rules)
        await apply(rules, *rest)

    async def looked(*words):
        read.append(words)
        return await text(*words)

    monkeypatch.setattr(service.nft, "apply", noted)
    monkeypatch.setattr(service.nft, "text", looked)
    nft("add", "table", "inet", "theirs")
    await until(lambda: read, 30)
    assert applied == []
    nft("flush", "chain", "inet", "banger_host", "forward")
    await until(lambda: applied, 30)
    read.clear()
    await until(lambda: read, 30)  # it hears of its own too
    await asyncio.sleep(1.5)  # longer than its pause
    assert len(applied) == 1


async def test_the_host_becomes_no_router_for_anybody_else(uplinked, own_host):
    """Forwarding is switched on where replies come in; what a neighbour wants routed is dropped all the same."""
    await ready(uplinked)
    own_host.beyond.run(ip, "route", "add", "192.0.2.0/24", "via", "198.51.100.1")
    lan = Namespace()
    try:
        ip("link", "add", "lan1", "type", "veth", "peer", "name", "lan2", "netns", str(lan.tid))
        ip("link", "set", "lan1", "master", "lan0", "up")
        lan.run(ip, "addr", "add", "192.0.2.9/24", "dev", "lan2")
        lan.run(ip, "link", "set", "lan2", "up")
        lan.run(ip, "route", "add", "default", "via", HOST_ADDRESS)
        reached = lan.run(connects, BEYOND, 7)
        assert not reached
        with open("/proc/sys/net/ipv4/ip_forward", "w") as file:
            file.write("1")  # the administrator's word
        await until_async(lambda: in_thread_of(lan, connects, BEYOND, 7))
    finally:
        ip("link", "del", "lan1")
        lan.close()


async def in_thread_of(namespace, work, *arguments):
    return await asyncio.to_thread(namespace.run, work, *arguments)


async def until_async(condition, timeout_s=PATIENCE_S):
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.02)


async def test_a_switch_of_all_forwarding_on_and_off_again_leaves_guests_their_way(uplinked):
    one, _, guest = await ready(uplinked)
    for value in ("1", "0"):
        with open("/proc/sys/net/ipv4/ip_forward", "w") as file:
            file.write(value)

        async def reached():
            return await in_thread(one.talk, guest, BEYOND) == "hello from a guest"

        await until_async(reached)


async def test_forwarding_that_the_administrator_switched_on_stays(helper):
    with open("/proc/sys/net/ipv4/ip_forward", "w") as file:
        file.write("1")
    one = Uplinked(helper)
    found = await one.attach()
    await ask(helper.socket, "uplink.detach", slot=found["slot"])
    one.close()
    assert forwards("wan0")
    assert forwards("lan0")


# Somebody else's things


async def test_somebody_elses_table_of_our_name_is_refused_and_not_touched(helper):
    subprocess.run(["nft", "add", "table", "inet", "banger_host"], check=True)
    subprocess.run(["nft", "add", "chain", "inet", "banger_host", "theirs"], check=True)
    before = host_state()
    one = Uplinked(helper)
    try:
        with pytest.raises(RefusedError, match="banger_host is not banger's") as caught:
            await one.attach()
        assert caught.value.hint == "sudo nft list table inet banger_host"
    finally:
        one.close()
    assert host_state() == before
    subprocess.run(["nft", "delete", "table", "inet", "banger_host"], check=True)


async def test_somebody_elses_link_of_our_name_is_refused_and_not_touched(helper):
    number = 1 + 0 % SlotPlan().count
    ip("link", "add", f"banger-up{number}", "type", "bridge")
    before = host_state()
    one = Uplinked(helper)
    try:
        with pytest.raises(RefusedError, match=f"banger-up{number} that is not banger's"):
            await one.attach()
    finally:
        one.close()
    assert host_state() == before
    assert (await ask(helper.socket, "list"))["uplinks"] == []


@pytest.mark.parametrize("words", [
    ["addr", "add", "10.115.9.9/24", "dev", "lan0"],
    ["route", "add", "10.115.0.0/17", "via", BEYOND],
    ["route", "add", "10.0.0.0/8", "via", BEYOND],
    ["route", "add", "blackhole", "10.115.255.0/24"],
])  # fmt: skip
async def test_a_prefix_that_the_host_uses_is_refused(helper, words):
    ip(*words)
    before = host_state()
    one = Uplinked(helper)
    try:
        with pytest.raises(RefusedError, match=r"10\.115\.0\.0/16 is in use") as caught:
            await one.attach()
        assert "bridge_prefix" in caught.value.hint
    finally:
        one.close()
    assert host_state() == before


async def test_a_foreign_drop_policy_is_named_with_what_mends_it(uplinked):
    rules = (
        "table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }"
    )
    subprocess.run(["nft", "-f", "-"], input=rules.encode(), check=True)
    one, found, guest = await ready(uplinked)
    (warning,) = found["warnings"]
    assert "chain FORWARD of table ip filter drops" in warning
    assert "sudo iptables -I FORWARD -i banger-up+ -j ACCEPT" in warning
    assert one.talk(guest, BEYOND) == ""
    for direction in ("iifname", "oifname"):
        words = f'insert rule ip filter FORWARD {direction} "banger-up*" accept'
        subprocess.run(["nft", words], check=True)
    assert (await one.attach())["warnings"] == []
    assert one.talk(guest, BEYOND, timeout_s=PATIENCE_S) == "hello from a guest"


# Crashes


async def test_the_next_helper_takes_over_what_lives_and_removes_what_does_not(own_host, short_dir):
    before = host_state()
    async with running_helper(short_dir) as first:
        lives, dies = Uplinked(first), Uplinked(first)
        kept, gone = await lives.attach(), await dies.attach()
        await first.service.close()  # as a kill does: nothing is undone
        dies.close()
        await until(lambda: gone["link"] not in links())
        second = UplinkService(short_dir / "state", SlotPlan(), resolver=lambda: BEYOND)
        await second.start()
        assert [each.slot for each in await second.list(0)] == [kept["slot"]]
        await second.close()
        await first.service.start()
        lives.close()
        await until(lambda: kept["link"] not in links())
    assert host_state() == before


async def test_an_uplink_that_goes_just_when_another_is_made_is_no_hindrance(helper, monkeypatch):
    """Namespaces end when they like: after the ledger was compared with the host, and before a slot is chosen."""
    goes, comes = Uplinked(helper), Uplinked(helper)
    found = await goes.attach()
    await nothing_is_heard(helper)
    reconcile = UplinkService._reconcile

    async def and_it_goes(self):
        done = await reconcile(self)
        if found["link"] in links():
            ip("link", "del", found["link"])
        return done

    monkeypatch.setattr(UplinkService, "_reconcile", and_it_goes)
    try:
        assert (await comes.attach())["slot"] != found["slot"]
    finally:
        monkeypatch.undo()
        goes.close()
        comes.close()
    await until(lambda: not [name for name in links() if name.startswith("banger-up")])


@pytest.mark.parametrize(
    "broken", ["add_address", "set_link", "add_route", "disable_ipv6", "forward_ipv4"]
)
async def test_an_attach_that_fails_half_way_leaves_nothing(helper, monkeypatch, broken):
    before = host_state()

    def fails(*_arguments, **_named):
        raise OSError(5, f"{broken} is broken")

    monkeypatch.setattr(f"banger.host.netlink.Route.{broken}", fails)
    one = Uplinked(helper)
    try:
        with pytest.raises(BangerError, match=r"uplink\.attach failed"):
            await one.attach()
    finally:
        one.close()
    assert host_state() == before
    assert helper.service.ledger.rows("uplink") == []


@pytest.mark.parametrize("where", ["intend", "add_veth", "apply", "add_route", "done"])
async def test_a_helper_killed_at_any_step_leaves_nothing_that_the_next_does_not_remove(
    own_host, short_dir, where
):
    before = host_state()
    script = KILLED.format(where=where)
    one = Uplinked(None)
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, str(short_dir)], pass_fds=[one.namespace],
            input=str(one.namespace).encode(), capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        next_one = UplinkService(short_dir / "state", SlotPlan(), resolver=lambda: BEYOND)
        await next_one.start()
        for each in await next_one.list(0):
            assert where == "done"
            await next_one.detach(0, each.slot)
        assert next_one.ledger.rows("uplink") == []
        assert next_one.ledger.rows("forwarding") == []
        await next_one.close()
    finally:
        one.close()
    assert host_state() == before


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from banger.host import ledger, netlink, nft
from banger.network.uplinks.service import UplinkService
from banger.network.uplinks.slots import SlotPlan
def after(owner, name):
    real = getattr(owner, name)
    def call(*a, **k):
        result = real(*a, **k)
        os.kill(os.getpid(), signal.SIGKILL)
        return result
    async def call_async(*a, **k):
        await real(*a, **k)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(owner, name, call_async if asyncio.iscoroutinefunction(real) else call)
async def main():
    service = UplinkService(Path(sys.argv[1]) / "state", SlotPlan(), resolver=lambda: "9.9.9.9")
    await service.start()
    where = "{where}"
    owner = {{"intend": ledger.Ledger, "done": ledger.Ledger, "apply": nft}}.get(where, netlink.Route)
    if where == "done":  # the second: the first is of the forwarding
        real = ledger.Ledger.done
        def done(self, row, **facts):
            found = real(self, row, **facts)
            if row.kind == "uplink":
                os.kill(os.getpid(), signal.SIGKILL)
            return found
        ledger.Ledger.done = done
    else:
        after(owner, where)
    await service.attach(0, int(sys.stdin.read()))
asyncio.run(main())
"""


async def test_rows_of_an_earlier_boot_are_struck(helper, monkeypatch):
    one = Uplinked(helper)
    found = await one.attach()
    one.close()
    await until(lambda: found["link"] not in links())
    row = helper.service.ledger.intend(
        "uplink", "7", 0, device=1, inode=2, guests="10.115.28.0/22", transfer="10.115.0.14/31"
    )
    helper.service.ledger.done(row)
    assert (await ask(helper.socket, "list"))["uplinks"] == []
    assert helper.service.ledger.rows("uplink") == []


# Attackers


async def test_who_is_not_in_the_group_cannot_even_connect(helper):
    with pytest.raises(AssertionError, match="PermissionError"):
        await asyncio.to_thread(as_user, STRANGER, asked, helper.socket, "hello")
    helper.socket.chmod(0o666)  # were the file's mode wrong, the kernel's credentials say it too
    assert await asyncio.to_thread(as_user, STRANGER, asked, helper.socket, "hello") is None
    (line,) = [line for line in helper.audited() if not line["ok"]]
    assert (line["uid"], line["what"]) == (STRANGER, "connect")


def attach_from(path, tid):
    return asked(path, "uplink.attach", os.open(f"/proc/{tid}/ns/net", os.O_RDONLY))


async def test_somebody_elses_namespace_is_refused(helper):
    before = host_state()
    victim = Uplinked(helper)  # root's
    try:
        namespace = victim.namespace

        def with_roots():
            return asked(helper.socket, "uplink.attach", namespace)

        reply = await as_member(USER, with_roots)
        assert reply["error"]["code"] == "refused"
        assert "made by user 0" in reply["error"]["detail"]
    finally:
        victim.close()
    assert host_state() == before


@pytest.mark.parametrize("uid", [0, USER])
async def test_the_hosts_own_namespace_is_nobodys_to_give(helper, uid):
    namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY)

    def with_hosts():
        return asked(helper.socket, "uplink.attach", namespace)

    reply = await as_member(uid, with_hosts)
    os.close(namespace)
    assert "the host's own user namespace" in reply["error"]["detail"]


def odd_descriptors():
    read_end, write_end = os.pipe()
    return [
        os.open("/", os.O_RDONLY),
        os.open("/dev/null", os.O_RDWR),
        os.open("/proc/self/ns/user", os.O_RDONLY),
        os.open("/proc/self/ns/mnt", os.O_RDONLY),
        os.open("/proc/self/ns/net", os.O_PATH),
        os.open("/proc/self/status", os.O_RDONLY),
        os.open("/tmp", os.O_RDWR | os.O_TMPFILE),
        socket.socket(socket.AF_UNIX).detach(),
        read_end,
        write_end,
    ]


def attach_odd(path):
    return [asked(path, "uplink.attach", descriptor) for descriptor in odd_descriptors()]


async def test_a_descriptor_that_is_no_network_namespace_is_refused(helper):
    await until(lambda: not helper.service._tasks)  # nft, which it asks, has descriptors too
    open_before = len(os.listdir("/proc/self/fd"))
    for reply in await as_member(USER, attach_odd, helper.socket):
        assert reply["error"]["code"] == "invalid", reply
        assert reply["error"]["hint"]
    await until(lambda: len(os.listdir("/proc/self/fd")) == open_before)
    await until(lambda: helper.policy._open == {})  # said by a thread, after it has closed


def many_descriptors(path, count):
    data = json.dumps({"op": "uplink.attach"}).encode()
    return call(path, data, [os.open("/dev/null", os.O_RDONLY) for _ in range(count)])


@pytest.mark.parametrize("count", [2, 4, 5, 250])
async def test_more_descriptors_than_asked_for_are_closed(helper, count):
    await until(lambda: not helper.service._tasks)  # nft, which it asks, has descriptors too
    open_before = len(os.listdir("/proc/self/fd"))
    reply = json.loads(await as_member(USER, many_descriptors, helper.socket, count))
    assert reply["error"]["code"] == "invalid"
    await until(lambda: len(os.listdir("/proc/self/fd")) == open_before)


async def test_a_descriptor_that_will_not_close_holds_up_only_its_sender(helper, monkeypatch):
    """A file of FUSE waits in close(2) for a user's program."""
    stuck, end = os.open("/dev/null", os.O_RDONLY), threading.Event()
    really = os.close

    def slow(descriptor):
        closing = threading.current_thread().name == "close"  # not who starts nft without input
        if closing and os.path.realpath(f"/proc/self/fd/{descriptor}") == "/dev/null":
            end.wait(120)
        really(descriptor)

    monkeypatch.setattr("banger.helper.server.os.close", slow)

    def send():
        return asked(helper.socket, "uplink.attach", stuck)

    replies = [await as_member(USER, send) for _ in range(9)]
    assert [r is None for r in replies] == [False] * 8 + [True]  # its connections are used up
    assert (await as_member(OTHER, asked, helper.socket, "hello"))["ok"]
    end.set()
    await until(lambda: helper.policy._open == {})
    assert (await as_member(USER, asked, helper.socket, "hello"))["ok"]
    monkeypatch.undo()
    os.close(stuck)


async def test_nobody_sees_or_takes_another_users_uplink(helper, uplinked):
    root_one = await uplinked()
    found = await root_one.attach()
    assert (await as_member(USER, asked, helper.socket, "list"))["result"]["uplinks"] == []

    def detach():
        return asked(helper.socket, "uplink.detach", slot=found["slot"])

    reply = await as_member(USER, detach)
    assert reply["error"]["code"] == "not-found"
    assert found["link"] in links()


def attach_many(path, count):
    """Each from a namespace of its own, all alive at once."""
    replies, children = [], []
    for _ in range(count):
        reader, writer = os.pipe()
        wait, end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(end)
            reply = asked(path, "uplink.attach", own_namespace())
            os.write(writer, json.dumps(reply).encode())
            os.close(writer)
            os.read(wait, 1)
            os._exit(0)
        os.close(writer)
        os.close(wait)
        replies.append(json.loads(os.read(reader, 1 << 16)))
        os.close(reader)
        children.append((pid, end))
    for _, end in children:  # all of them first: each child has copies of those before it
        os.close(end)
    for pid, _ in children:
        os.waitpid(pid, 0)
    return replies


async def test_beyond_the_quota_uplinks_are_refused_to_that_user_only(helper):
    replies = await as_member(USER, attach_many, helper.socket, 6)
    assert [reply["ok"] for reply in replies] == [True] * 4 + [False] * 2
    assert replies[-1]["error"]["code"] == "refused"
    assert "quota" in replies[-1]["error"]["detail"]
    assert (await as_member(OTHER, in_own_namespace, helper.socket))["ok"]
    await until(lambda: not [name for name in links() if name.startswith("banger-up")])


def flood(path, count):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.settimeout(PATIENCE_S)
        channel.connect(str(path))
        replies = []
        for _ in range(count):
            channel.send(b'{"op": "list"}')
            replies.append(json.loads(channel.recv(1 << 16))["ok"])
        return replies


async def test_a_flood_of_requests_is_refused_and_others_are_served(helper):
    now_s = helper.policy.now_s()
    helper.policy.now_s = lambda: now_s  # however long it takes, no more are allowed meanwhile
    replies = await as_member(USER, flood, helper.socket, 60)
    assert replies[:40] == [True] * 40
    assert replies.count(False) > 5
    assert (await as_member(OTHER, asked, helper.socket, "hello"))["ok"]


def hold_connections(path, count):
    held = []
    for _ in range(count):
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel.settimeout(PATIENCE_S)
        channel.connect(str(path))
        try:
            channel.send(b'{"op": "hello"}')  # it may have hung up by then
            held.append((channel, bool(channel.recv(4096))))
        except OSError:
            held.append((channel, False))
    return [served for _, served in held]


async def test_one_user_cannot_hold_all_connections(helper):
    served = await as_member(USER, hold_connections, helper.socket, 12)
    assert served == [True] * 8 + [False] * 4


async def test_the_audit_log_has_every_request(helper):
    await as_member(USER, in_own_namespace, helper.socket)
    await as_member(USER, asked, helper.socket, "no.such.verb")
    lines = [(line["what"], line.get("uid"), line.get("ok")) for line in helper.audited()]
    assert ("uplink.attach", USER, True) in lines
    assert ("no.such.verb", USER, False) in lines
    assert helper.audit.stat().st_mode & 0o777 == 0o600


async def test_without_a_helper_the_error_says_what_to_do(short_dir):
    with pytest.raises(HostLacksError, match="does not run") as caught:
        await ask(short_dir / "none.sock", "hello")
    assert caught.value.hint == "sudo banger setup helper"


# The process


def start_helper(directory, *options, fd=None):
    argv = [
        sys.executable,
        "-m",
        "banger.helper.main",
        "--state-dir",
        str(directory / "state"),
        *options,
    ]
    env = {**os.environ, "BANGER_CONFIG": str(directory / "none.toml")}
    if fd is None:
        return subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True)
    code = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); os.execv(sys.argv[2], sys.argv[2:])"
    return subprocess.Popen(
        [sys.executable, "-c", code, str(fd), *argv], env=env, pass_fds=[fd], stderr=subprocess.PIPE, text=True
    )  # fmt: skip


async def answered(path):
    async with asyncio.timeout(60):
        while True:
            try:
                return await ask(path, "hello")
            except HostLacksError:
                await asyncio.sleep(0.05)


async def test_the_process_serves_ends_on_sigterm_and_its_uplinks_live_on(own_host, short_dir):
    before = host_state()
    path = short_dir / "h.sock"
    one = Uplinked(None)
    process = start_helper(short_dir, "--socket", str(path), "--group", "")
    try:
        assert (await answered(path))["pid"] == process.pid
        found = await ask(path, "uplink.attach", descriptors=[one.namespace])
        second = start_helper(short_dir, "--socket", str(path), "--group", "")
        assert second.wait() == 4
        assert "another process's" in second.stderr.read()
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
        assert not path.exists()
        assert found["link"] in links()
    finally:
        process.kill()
        process.stderr.close()
        second.stderr.close()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:  # as systemd passes it
        listener.bind(str(path))
        listener.listen(8)
        process = start_helper(short_dir, "--group", "", fd=listener.fileno())
        try:
            (kept,) = (await ask(path, "list"))["uplinks"]
            assert kept["slot"] == found["slot"]
            one.close()
            await until(lambda: host_state() == before)
            process.send_signal(signal.SIGTERM)
            assert process.wait() == 0
            assert path.exists()  # systemd's
        finally:
            process.kill()
            process.stderr.close()
    path.unlink()


def test_a_missing_group_is_an_error_with_the_next_step(own_host, short_dir):
    process = start_helper(short_dir, "--socket", str(short_dir / "h.sock"), "--group", "no-such")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 5
    assert said.endswith("hint: sudo groupadd --system no-such\n")


SCENARIO = """
import asyncio, os, sys
from pathlib import Path
from banger.network.bridge import BridgeNetwork
from banger.network.modes import DaemonNetwork
from banger.network.uplinks.client import HostUplinks
from banger.network.uplinks.service import UplinkService
from banger.network.uplinks.slots import SlotPlan
from banger.network.user import UserNetwork
async def main():
    directory = Path(sys.argv[1])
    uplinks = HostUplinks(Path(sys.argv[2]), UplinkService(directory / "helper", SlotPlan()))
    network = DaemonNetwork(UserNetwork(directory, directory), BridgeNetwork(directory, directory, uplinks), uplinks)
    await network.start()
    lease, mtu = await network.settle(network.plan_lease("a" * 12, []), "auto")
    attached = await network.attach(lease, "auto", named=False)
    print(attached.mode, lease.ip.rpartition(".")[2], mtu, (await network.describe())["mode"])
    os.close(attached.tap_fd)
    await network.detach(lease)
    await network.stop(if_unused=False)
    await network.close()
asyncio.run(main())
"""


async def test_an_ordinary_user_in_the_group_gets_bridge_mode(own_host, short_dir):
    with OrdinaryUser(groups=[GROUP]) as someone:
        python = someone.python()
        if python is None:
            pytest.skip("there is no Python of this version that every user may start")
        someone.install(python)
        own = someone.checkout / "run"
        own.mkdir()
        os.chown(own, someone.account.pw_uid, someone.account.pw_gid)
        path = f"PYTHONPATH={someone.checkout / 'src'}:{someone.checkout / 'site'}"
        async with running_helper(short_dir) as helper:
            argv = ("env", path, python, "-c", SCENARIO, str(own), str(helper.socket))
            with tun_mode(0o666):
                done = await asyncio.to_thread(someone.run, *argv, timeout=180, check=False)
            assert done.stderr == ""
            assert done.stdout == "bridge 16 1500 bridge\n"
            assert [row["uid"] for row in helper.audited() if row["what"] == "uplink.attach"] == [
                someone.account.pw_uid
            ]
            await until(lambda: not [name for name in links() if name.startswith("banger-up")])
