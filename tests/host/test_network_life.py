"""The network's holder and uplink come, stay, die and go: seen from one daemon and from the next."""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from banger.host import nft, proc
from banger.host.exec import run
from banger.host.namespaces import enter
from banger.host.probe import root
from banger.model.errors import BangerError, HostLacksError
from banger.model.spec import ForwardProtocol
from banger.network import filter as rules
from banger.network import space, user
from banger.network.control import HolderError, ask
from banger.network.forward import Relays
from banger.network.holder import PROTOCOL
from banger.network.processes import start_holder
from banger.network.record import Files, read_record
from banger.network.user import UserNetwork
from tests.framework.helper_host import host_state
from tests.framework.net_host import BEYOND, LinuxGuest
from tests.framework.ordinary_user import OrdinaryUser, tun_mode
from tests.host.conftest import filled, least_ms

UDP = ForwardProtocol.UDP
UNREACHED = "No route to host|timed out"


async def in_thread(work, *arguments):
    return await asyncio.to_thread(work, *arguments)


async def until(condition, timeout_s=30):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def processes_of(directory):
    """Pids of all that belongs to the network in ``directory``: by argument or, the uplink, by environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if str(directory).encode() in text and proc.identify(int(entry.name)):
                found.append(int(entry.name))
    return sorted(found)


async def pins(network):
    """Who may speak, by the kernel's own words."""
    async with network._space._inside() as namespaces:
        bridge = await nft.elements("bridge", rules.TABLE, namespaces)
        inet = await nft.elements("inet", rules.TABLE, namespaces)
    return rules.pins_of(bridge[rules.PINS], inet[rules.OUTWARD])


@pytest.fixture
async def next_daemon(network, short_dir):
    """A second daemon's view of the same network; the first lets go when it starts."""
    made = []

    async def start(**options):
        await network.close()
        made.append(UserNetwork(short_dir, short_dir, **options))
        await made[-1].start()
        return made[-1]

    yield start
    for each in made:
        await each.stop(if_unused=False)
        await each.close()


async def test_starting_starts_nothing_and_stopping_leaves_nothing(network, guests, short_dir):
    assert processes_of(short_dir) == []
    assert (await network.describe())["mode"] == "user"
    assert processes_of(short_dir) == []
    wire = await guests.wire()
    assert len(processes_of(short_dir)) == 2
    namespace = os.stat(f"/proc/{network._space.holder.pid}/ns/net").st_ino
    await network.stop()
    assert len(processes_of(short_dir)) == 2, "somebody still has a TAP"
    os.close(os.dup(wire.tap))
    await network.detach(wire.lease)
    await network.stop()
    assert processes_of(short_dir) == []
    assert [path.name for path in (short_dir / "net").iterdir()] == []
    holders = [entry for entry in Path("/proc").glob("[0-9]*/ns/net") if _inode(entry) == namespace]
    assert holders == []


def _inode(path):
    try:
        return path.stat().st_ino
    except OSError:
        return None


async def test_the_namespace_ends_with_the_last_vm_after_a_while(
    network, guests, short_dir, monkeypatch
):
    monkeypatch.setattr(user, "LINGER_S", 0.2)
    one, two = await guests.wire(), await guests.wire()
    await network.detach(one.lease)
    await asyncio.sleep(0.4)
    assert len(processes_of(short_dir)) == 2
    await network.detach(two.lease)
    await until(lambda: processes_of(short_dir) == [])


async def test_a_tap_is_gone_when_its_last_descriptor_is_closed(network, guests):
    attachment = await guests.attach()
    assert network._space.guests() == [attachment.tap_name]
    os.close(attachment.tap_fd)
    await until(lambda: network._space.guests() == [])


async def test_attaching_the_same_lease_again_replaces_its_tap(network, guests):
    wire = await guests.wire()
    again = await network.attach(wire.lease, "auto", named=False)
    assert network._space.guests() == [again.tap_name]
    os.close(again.tap_fd)
    assert len([pin for pin in await pins(network) if pin.tap == again.tap_name]) == 1


async def test_detaching_is_idempotent_and_takes_the_tap_away_from_who_has_it(network, guests):
    wire = await guests.wire()
    for _ in range(3):
        await network.detach(wire.lease)
    assert not network.has(wire.lease)
    assert network._space.guests() == []
    with pytest.raises(OSError, match="bad state"):
        wire.send(bytes(60))


async def test_the_next_daemon_adopts_namespace_filter_and_uplink(
    network, guests, next_daemon, short_dir
):
    guest = await guests.linux()
    before = processes_of(short_dir)
    known = await pins(network)
    second = await next_daemon()
    second.adopted(guest.lease)
    assert processes_of(short_dir) == before
    assert await pins(second) == known
    assert await in_thread(guest.tcp_echo, BEYOND) == b"hello"
    with guest.listen(80), await second.dial(guest.lease, 80):
        pass
    assert "died" not in (await second.describe())["detail"]


async def test_addresses_that_came_while_no_daemon_ran_are_closed_on_adoption(
    guests, next_daemon, own_host
):
    guest = await guests.linux()
    await guests.network.close()
    subprocess.run(["ip", "addr", "add", "203.0.113.7/32", "dev", "lan0"], check=True)
    await next_daemon()
    with pytest.raises(OSError, match=UNREACHED):
        await in_thread(guest.connect, "203.0.113.7")
    assert own_host.services.connected == []


async def test_a_network_with_another_uplink_is_not_adopted_but_ended(
    guests, next_daemon, short_dir
):
    await guests.wire()
    await next_daemon(uplink="pasta")
    assert processes_of(short_dir) == []


async def test_a_holder_that_nobody_wrote_down_is_found_and_ended(
    own_host, namespaces_work, short_dir
):
    files = Files(short_dir, short_dir)
    files.directory.mkdir(mode=0o700)
    holder = await start_holder(files)
    network = UserNetwork(short_dir, short_dir)
    await network.start()
    await proc.wait_gone(holder)
    assert processes_of(short_dir) == []
    await network.close()


@pytest.mark.parametrize("step", ["_lay_out", "_lay_out_uplink", "_start_uplink", "_guard"])
async def test_a_network_whose_daemon_died_while_it_was_made_is_ended_by_the_next(
    namespaces_work, short_dir, step
):
    """Of a network without bridge, filter or uplink nothing is of use, and nobody was attached to it yet."""
    code = (
        "import asyncio, os, signal, sys; from pathlib import Path; from banger.network import space, user\n"
        f"space.Space.{step} = lambda self: os.kill(os.getpid(), signal.SIGKILL)\n"
        "async def main():\n"
        "    network = user.UserNetwork(Path(sys.argv[1]), Path(sys.argv[1])); await network.start()\n"
        "    await network.attach(network.plan_lease('a' * 12, []), 'user', named=False)\n"
        "asyncio.run(main())"
    )
    done = await in_thread(subprocess.run, [sys.executable, "-c", code, str(short_dir)])
    assert done.returncode == -signal.SIGKILL
    assert processes_of(short_dir) != []
    network = UserNetwork(short_dir, short_dir)
    await network.start()
    assert processes_of(short_dir) == []
    assert "not started" in (await network.describe())["detail"]
    await network.close()


async def test_a_dead_uplink_is_repaired_in_place_within_a_second(network, guests):
    guest = await guests.linux()
    assert await in_thread(guest.tcp_echo, BEYOND) == b"hello"
    first, holder = network._space.uplink, network._space.holder
    os.kill(first.pid, signal.SIGKILL)
    # The goal of a second is an idle machine's.
    await until(lambda: network._space.uplink not in {first, None})
    assert await in_thread(guest.tcp_echo, BEYOND) == b"hello"
    assert network._space.holder == holder
    assert read_record(network._files.record).uplink == network._space.uplink


async def test_an_uplink_that_died_while_no_daemon_ran_is_repaired_by_the_next(guests, next_daemon):
    guest = await guests.linux()
    uplink = guests.network._space.uplink
    await guests.network.close()
    os.kill(uplink.pid, signal.SIGKILL)
    second = await next_daemon()
    await until(lambda: second._space.uplink not in {uplink, None})
    assert await in_thread(guest.tcp_echo, BEYOND) == b"hello"


async def test_an_uplink_that_cannot_start_is_said_and_tried_again(network, guests, monkeypatch):
    guest = await guests.linux()

    async def refuse(*_):
        raise HostLacksError("not today")

    with monkeypatch.context() as patched:
        patched.setattr(space, "start_uplink", refuse)
        os.kill(network._space.uplink.pid, signal.SIGKILL)
        await until(lambda: network._space.trouble)
        assert "not today" in (await network.describe())["detail"]
    await until(lambda: not network._space.trouble)
    assert await in_thread(guest.tcp_echo, BEYOND) == b"hello"


async def test_an_address_that_cannot_be_closed_at_once_is_said_and_closed_later(
    network, guests, monkeypatch
):
    guest = await guests.linux()
    monkeypatch.setattr(space, "_RETRY_S", 0.05)
    with monkeypatch.context() as patched:
        patched.setattr(rules, "close_networks", lambda *_: "nonsense\n")
        subprocess.run(["ip", "addr", "add", "203.0.113.7/32", "dev", "lan0"], check=True)
        await until(lambda: network._space.trouble)
        assert "could not be closed" in (await network.describe())["detail"]
    await until(lambda: not network._space.trouble)
    with pytest.raises(OSError, match=UNREACHED):
        await in_thread(guest.connect, "203.0.113.7")


async def test_a_dead_holder_takes_its_uplink_with_it_is_reported_and_the_next_vm_gets_a_new_one(
    network, guests, short_dir
):
    old = await guests.wire()
    holder = network._space.holder
    os.kill(holder.pid, signal.SIGKILL)
    await until(lambda: network._space is None)
    assert "died" in (await network.describe())["detail"]
    await until(lambda: processes_of(short_dir) == [])
    with pytest.raises(ConnectionRefusedError):
        await network.dial(old.lease, 22)
    await network.detach(old.lease)
    guest = await guests.linux()
    assert network._space.holder != holder
    assert await in_thread(guest.tcp_echo, BEYOND) == b"hello"


async def test_a_holder_that_dies_under_an_attach_is_replaced_at_once(network, guests, monkeypatch):
    monkeypatch.setattr(user, "DYING_S", 30)  # on a busy host one that was killed dies slowly
    await guests.wire()
    os.kill(network._space.holder.pid, signal.SIGKILL)
    assert (await guests.wire()).gateway_mac


async def test_a_holder_that_lost_its_sockets_and_is_not_gone_yet_is_replaced_too(
    network, guests, monkeypatch
):
    await guests.wire()
    holder = network._space.holder
    add_tap = space.Space.add_tap

    async def dying(self, lease, **options):
        if self.holder != holder:
            return await add_tap(self, lease, **options)
        asyncio.get_running_loop().call_later(0.2, proc.send_signal, holder, signal.SIGKILL)
        raise ConnectionResetError

    monkeypatch.setattr(user, "DYING_S", 30)
    monkeypatch.setattr(space.Space, "add_tap", dying)
    assert (await guests.wire()).gateway_mac
    assert network._space.holder != holder


@pytest.mark.parametrize("broken", ["pin", "ruleset"])
async def test_without_a_working_filter_no_tap_is_handed_out(
    network, guests, short_dir, monkeypatch, broken
):
    if broken == "pin":
        await guests.wire()
    taps = network._space.guests() if network._space else []
    monkeypatch.setattr(rules, broken, lambda *_: "add nonsense\n")
    with pytest.raises(BangerError):
        await guests.attach(outward=False)  # nothing is prepared for such a guest
    if broken == "pin":
        assert network._space.guests() == taps
    else:
        assert processes_of(short_dir) == []


async def test_the_holder_answers_only_its_own_user_and_survives_nonsense(network, guests):
    await guests.wire()
    control = network._files.control
    for junk in (
        b"",
        b"{",
        b"[]",
        b'{"op":"no such"}',
        b'{"op":"tap"}',
        b'{"op":"tap","name":"../../x"}',
        b"[" * 1000,
        b"x" * 5000,
    ):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
            channel.settimeout(30)
            channel.connect(str(control))
            channel.send(junk)
            if junk and len(junk) < 1024:
                assert b'"ok": false' in channel.recv(4096)
    with pytest.raises(OSError, match="busy"):
        await ask(control, "tap", name="uplink0", expect=1)  # busy
    with pytest.raises(HolderError):
        await ask(control, "hello", expect=1)
    for directory in (control.parent, control.parent.parent):
        directory.chmod(0o755)
    control.chmod(0o666)
    stranger = (
        "import socket,sys,os; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "s=socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1])\n"
        'try: s.send(b\'{"op":"stop"}\'); data=s.recv(99)\n'
        "except OSError: data=b''\n"
        "assert data==b'', data"
    )
    subprocess.run([sys.executable, "-c", stranger, str(control)], check=True)
    assert (await ask(control, "hello"))[0]["pid"] == network._space.holder.pid


async def test_dialing_reaches_a_guest_and_says_when_nobody_listens(network, guests, monkeypatch):
    guest, wire = await guests.linux(), await guests.wire()
    with guest.listen(2222) as listener, await network.dial(guest.lease, 2222) as ours:
        assert ours.gettimeout() == 0.0
        theirs, peer = await in_thread(listener.accept)
        with theirs:
            assert peer[0] == guest.lease.gateway
            theirs.sendall(b"SSH-2.0\r\n")
            assert await asyncio.get_running_loop().sock_recv(ours, 64) == b"SSH-2.0\r\n"
    with pytest.raises(ConnectionRefusedError):
        await network.dial(guest.lease, 2223)
    monkeypatch.setattr(user, "DIAL_S", 0.2)
    with pytest.raises(TimeoutError):
        await network.dial(wire.lease, 22)


async def test_a_forward_carries_a_hundred_megabytes_a_second_into_a_guest(network, guests):
    guest = await guests.linux()
    relays, size = Relays(), 64 << 20
    with guest.listen(8000) as listener:
        port = await relays.add(0, lambda: network.dial(guest.lease, 8000))

        def serve():
            with listener.accept()[0] as client:
                client.sendall(bytes(size))

        def fetch():
            count = 0
            with socket.create_connection(("127.0.0.1", port), timeout=60) as opened:
                while data := opened.recv(1 << 20):
                    count += len(data)
            return count

        rates = []
        while len(rates) < 5 and max(rates, default=0) <= 20:  # others use the processors too
            began = time.monotonic()
            _, count = await asyncio.gather(in_thread(serve), in_thread(fetch))
            rates.append(count / (time.monotonic() - began) / 1e6)
            assert count == size
        print(f"{max(rates):.0f} MB/s through forward, namespace and TAP")
        # The goal is 100 on an idle machine; the pump of the test is in Python too.
        assert max(rates) > 20
        await relays.close()


@pytest.fixture
async def udp_forward(network, guests):
    """A guest with a UDP socket, and a client of the host's whose datagrams come to it."""
    guest = await guests.linux()
    relays = Relays()

    async def dial():
        return await network.dial(guest.lease, 5353, protocol=UDP)

    with (
        guest.serve_udp(5353) as served,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        client.settimeout(30)
        client.connect(("127.0.0.1", await relays.add(0, dial, protocol=UDP)))
        yield guest, served, client
        await relays.close()


@pytest.mark.parametrize("size", [5, 1472, 65507])
async def test_udp_passes_into_a_guest_and_back(udp_forward, size):
    guest, served, client = udp_forward
    data = os.urandom(size)
    await in_thread(client.send, data)
    got, peer = await in_thread(served.recvfrom, 70000)
    assert (got, peer[0]) == (data, guest.lease.gateway)
    served.sendto(data, peer)
    assert await in_thread(client.recv, 70000) == data


async def test_a_guest_speaks_by_udp_to_nobody_who_has_not_spoken_to_it(network, udp_forward):
    """Only the port that was asked may answer, and the namespace takes nothing of itself."""
    guest, served, client = udp_forward
    await in_thread(client.send, b"question")
    _, peer = await in_thread(served.recvfrom, 99)
    with guest.serve_udp(5354) as other:
        other.sendto(b"from another port", peer)
        await asyncio.sleep(0.1)
    served.sendto(b"answer", peer)
    assert await in_thread(client.recv, 99) == b"answer"


async def test_udp_to_a_port_where_no_guest_listens_is_lost_and_later_ones_arrive(network, guests):
    guest, relays = await guests.linux(), Relays()
    port = await relays.add(0, lambda: network.dial(guest.lease, 7000, protocol=UDP), protocol=UDP)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.1", port))
        client.settimeout(30)
        for _ in range(3):
            await in_thread(client.send, b"anybody?")
            await asyncio.sleep(0.05)
        with guest.serve_udp(7000) as served:
            await in_thread(client.send, b"now")
            data, peer = await in_thread(served.recvfrom, 99)
            while data == b"anybody?":  # it was held up on its way
                data, peer = await in_thread(served.recvfrom, 99)
            served.sendto(data, peer)
            assert await in_thread(client.recv, 99) == b"now"
    await relays.close()


async def test_a_holder_of_an_older_banger_is_adopted_and_only_udp_is_refused(
    network, guests, next_daemon, short_dir, monkeypatch
):
    """Its protocol is 1: a newer daemon must not take the network from VMs that run."""
    guest = await guests.linux()
    record_path = network._files.record
    record = msgspec.json.decode(record_path.read_bytes())
    record["protocol"] = 1
    record_path.write_bytes(msgspec.json.encode(record))
    asked = space.ask

    async def older(path, op, **options):
        reply, descriptors = await asked(path, op, **options)
        return ({**reply, "protocol": 1} if op == "hello" else reply), descriptors

    monkeypatch.setattr(space, "ask", older)
    holder = network._space.holder
    again = await next_daemon()
    assert again._space.holder == holder
    with guest.listen(8000) as listening:
        (await again.dial(guest.lease, 8000)).close()
        (await in_thread(listening.accept))[0].close()
    with pytest.raises(HostLacksError, match="older banger"):
        await again.dial(guest.lease, 5353, protocol=UDP)
    await again.set_outward(guest.lease, outward=False)
    with pytest.raises(OSError, match=UNREACHED):
        await in_thread(guest.tcp_echo, BEYOND)
    assert read_record(record_path).protocol == 1


async def test_a_network_of_a_newer_banger_is_not_believed(network, guests, short_dir):
    await guests.wire(resolved=False)
    record = read_record(network._files.record)
    assert record.fits(network._plan, "slirp4netns")
    for protocol in (0, PROTOCOL + 1):
        assert not msgspec.structs.replace(record, protocol=protocol).fits(
            network._plan, "slirp4netns"
        )


async def test_the_next_daemon_finds_nat_as_the_last_one_left_it(network, guests, next_daemon):
    guest = await guests.linux()
    await network.set_outward(guest.lease, outward=False)
    again = await next_daemon()
    with pytest.raises(OSError, match=UNREACHED):
        await in_thread(guest.tcp_echo, BEYOND)
    await again.set_outward(guest.lease, outward=True)
    assert await in_thread(guest.tcp_echo, BEYOND) == b"hello"


async def inside(network):
    """Links, neighbours and filter of the namespace."""
    listed = []
    async with network._space._inside() as namespaces:
        for words in ("ip -o link", "ip neigh", "nft -s list ruleset"):
            argv = [*enter(namespaces), *words.split()]
            done = await run(argv, timeout_s=20, pass_fds=namespaces.descriptors)
            listed += done.stdout.decode().splitlines()
    return listed


def without_numbers(listed):
    """What changes with every link that is made: its number and its MAC."""
    return sorted(re.sub(r"^\d+: |link/ether \S+", "", line) for line in listed)


async def all_there_is(network):
    """Of host and namespace, once the kernel's worker has said how the links are: it does so up to a second later."""
    await filled(network._space)
    now, earlier = None, ()
    async with asyncio.timeout(60):
        while now != earlier:
            earlier = now
            await asyncio.sleep(1.2)
            now = (host_state(), without_numbers(await inside(network)))
    return now


async def test_two_hundred_vms_come_and_go_without_a_trace(network, guests):
    first = await guests.attach()
    before = await all_there_is(network)
    attached = [await guests.attach() for _ in range(200)]
    assert len(set(network._space.guests())) == 201
    for each in attached:
        os.close(each.tap_fd)
        await network.detach(each.lease)
    assert await all_there_is(network) == before
    os.close(first.tap_fd)


async def test_setting_up_and_attaching_are_fast_and_waiting_costs_nothing(network, guests):
    await network.describe()
    cold_ms, warm_ms = await least_ms(network, guests)
    await filled(network._space)
    for _ in range(5):  # what was held up may have to be done yet
        before = [proc.usage(p.pid) for p in (network._space.holder, network._space.uplink)]
        await asyncio.sleep(1)
        after = [proc.usage(p.pid) for p in (network._space.holder, network._space.uplink)]
        if [seconds for seconds, _ in before] == [seconds for seconds, _ in after]:
            break
    print(
        f"cold {cold_ms:.0f} ms, a TAP {warm_ms:.1f} ms, resident {[rss >> 10 for _, rss in after]} KiB"
    )
    assert [seconds for seconds, _ in before] == [seconds for seconds, _ in after]
    assert after[0][1] < 24 << 20
    assert cold_ms < 1000  # goals: 80 and 10 on an idle machine
    assert warm_ms < 200


SCENARIO = """
import asyncio, os, sys
from pathlib import Path
from banger.network.user import UserNetwork
async def main():
    network = UserNetwork(Path(sys.argv[1]), Path(sys.argv[1]))
    await network.start()
    print((await network.describe())["mode"])
    lease = network.plan_lease("a" * 12, [])
    attached = await network.attach(lease, "auto", named=False)
    print(attached.mode, attached.warning)
    if attached.tap_fd is not None:
        print(network._space.guests(), network._space.uplink is not None)
        os.close(attached.tap_fd)
    await network.stop(if_unused=False)
    await network.close()
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def ordinary_user():
    """An ordinary user of the test's own, with a banger that it may read, and the Python that it may start."""
    if not root():
        pytest.skip(f"to become an ordinary user: {root().why}")
    with OrdinaryUser() as someone:
        python = someone.python()
        if python is None:
            pytest.skip("there is no Python of this version that every user may start")
        someone.install(python)
        yield someone, python


@pytest.mark.parametrize(("mode", "expected"), [(0o666, "user"), (0o600, "qemu-user")])
def test_an_ordinary_user_gets_the_same_or_a_warning(
    ordinary_user, namespaces_work, short_dir, mode, expected
):
    someone, python = ordinary_user
    os.chown(short_dir, someone.account.pw_uid, someone.account.pw_gid)
    path = f"PYTHONPATH={someone.checkout / 'src'}:{someone.checkout / 'site'}"
    argv = ("env", path, python, "-c", SCENARIO, str(short_dir))
    with tun_mode(mode):
        done = someone.run(*argv, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    first, second, *rest = done.stdout.splitlines()
    assert first == expected
    if expected == "user":
        assert second == "user "
        assert rest == ["['tap0'] True"]
    else:
        assert "/dev/net/tun" in second
        assert "127.0.0.1" in second
    assert processes_of(short_dir) == []


async def test_pasta_serves_as_an_uplink_too(own_host, namespaces_work, short_dir):
    if shutil.which("pasta") is None:
        pytest.skip("pasta is not installed")
    network = UserNetwork(short_dir, short_dir, uplink="pasta")
    await network.start()
    guest = LinuxGuest(await network.attach(network.plan_lease("a" * 12, []), "auto", named=False))
    try:
        assert await in_thread(guest.tcp_echo, BEYOND) == b"hello"
        with pytest.raises(OSError, match=UNREACHED):
            await in_thread(guest.connect, "192.0.2.2")
        assert own_host.services.connected == []
        first = network._space.uplink
        os.kill(first.pid, signal.SIGKILL)
        await until(lambda: network._space.uplink not in {first, None})
        assert await in_thread(guest.tcp_echo, BEYOND) == b"hello"
    finally:
        guest.close()
        await network.stop(if_unused=False)
        await network.close()
    assert processes_of(short_dir) == []
