"""Other people's firewalls, their links and tables with our names, a host that was restarted, a host without nft."""

import json
import os
import subprocess
from pathlib import Path

import msgspec
import pytest

from banger.host import exec as programs
from banger.host import proc
from banger.model.errors import BangerError, HostLacksError, RefusedError
from banger.network.record import read_record
from banger.network.user import UserNetwork
from tests.framework.helper_host import forwards, host_state, links, tables
from tests.framework.net_host import BEYOND, LinuxGuest, ip
from tests.host.test_network_bridge import attach, bridge, in_thread, until

RULESETS = Path(__file__).parent / "rulesets"
UNREACHED = "No route to host|timed out"
OTHER_BOOT = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def network_mode():
    return "bridge"


def nft(*arguments):
    done = subprocess.run(["nft", *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def load(name):
    nft("-f", str(RULESETS / f"{name}.nft"))


def listed():
    """Other people's tables, without what their counters have counted."""
    done = nft("-s", "list", "ruleset").split("\ntable ")
    return [table.strip() for table in done if "banger_host" not in table]


@pytest.fixture
def other_firewalls(network):
    """Goes before the network, which looks whether it left any rules itself."""
    yield
    for table in tables():
        if "banger_host" not in table:
            nft("delete", *table.split())


DOCKER_MEND = (
    "sudo iptables -I DOCKER-USER -i banger-up+ -j ACCEPT"
    " && sudo iptables -I DOCKER-USER -o banger-up+ -j ACCEPT"
)
FIREWALLD_MEND = (
    "sudo firewall-cmd --permanent --zone=trusted --add-interface=banger-up+"
    " && sudo firewall-cmd --reload"
)


def mend_docker():
    """What the command does: iptables' rules are nft's."""
    for direction in ("iifname", "oifname"):
        nft("insert", "rule", "ip", "filter", "DOCKER-USER", direction, '"banger-up*"', "accept")


def mend_firewalld():
    nft("delete", "table", "inet", "firewalld")
    load("firewalld-mended")


@pytest.mark.parametrize(
    ("firewall", "words", "mend"),
    [("docker", DOCKER_MEND, mend_docker), ("firewalld", FIREWALLD_MEND, mend_firewalld)],
)
async def test_beside_another_firewall_what_is_missing_is_said_and_does_it(
    own_host, guests, other_firewalls, firewall, words, mend
):
    network = guests.network
    load(firewall)
    before = listed()
    guest = await guests.linux()
    with pytest.raises(OSError, match=UNREACHED):
        await in_thread(guest.tcp_echo, BEYOND, timeout=3)
    detail = (await network.describe())["detail"]
    assert words in detail
    with guest.listen(8000) as listening:  # the host itself reaches it all the same
        (await network.dial(guest.lease, 8000)).close()
        (await in_thread(listening.accept))[0].close()
    assert listed() == before, "banger touches nobody else's rules"
    mend()
    assert await in_thread(guest.tcp_echo, BEYOND) == b"hello"
    async with network._lock:
        await network._space._guard_routed()
    assert "to mend it" not in (await network.describe())["detail"]


@pytest.mark.parametrize("firewall", ["docker", "firewalld"])
async def test_the_network_without_privilege_needs_nothing_from_another_firewall(
    own_host, namespaces_work, short_dir, firewall
):
    load(firewall)
    network = UserNetwork(short_dir, short_dir, pool=2)
    await network.start()
    guest = LinuxGuest(await network.attach(network.plan_lease("a" * 12, []), "user", named=False))
    try:
        assert await in_thread(guest.tcp_echo, BEYOND) == b"hello"
    finally:
        guest.close()
        await network.stop(if_unused=False)
        await network.close()


# A host that was restarted


def restart_host(directory, network):
    """All that a restart takes: processes, namespaces, links, rules, settings. What was written down stays, with the boot before."""
    for name in links():
        if name.startswith("banger-up"):
            ip("link", "del", name)
    os.kill(network._space.holder.pid, 9)  # the kernel would remove the link by itself, some time
    nft("flush", "ruleset")
    for name in links():
        Path(f"/proc/sys/net/ipv4/conf/{name}/forwarding").write_text("0")
    path = directory / "helper" / "ledger.json"
    path.write_text(path.read_text().replace(proc.boot_id(), OTHER_BOOT))
    record_path = network._files.record
    record = msgspec.json.decode(record_path.read_bytes())
    mine = proc.identify(os.getpid())  # the pid is somebody else's by now
    record["holder"] = {**record["holder"], "pid": mine.pid, "boot_id": OTHER_BOOT}
    record_path.write_bytes(msgspec.json.encode(record))


async def test_after_a_restart_of_the_host_nothing_old_is_believed_and_all_is_made_anew(
    own_host, namespaces_work, short_dir
):
    before = host_state()
    network = bridge(short_dir)
    await network.start()
    tap = await attach(network)
    assert forwards("wan0")
    lease = tap.lease
    await network._space.close()
    await network._uplinks.close()
    holder = network._space.holder
    os.close(tap.tap_fd)
    restart_host(short_dir, network)
    await proc.wait_gone(holder)
    assert host_state() == before

    again = bridge(short_dir)
    await again.start()
    assert not again.running
    assert read_record(again._files.record) is None
    ledger = json.loads((short_dir / "helper" / "ledger.json").read_text())
    assert ledger["rows"] == [], "rows of the boot before"
    assert host_state() == before
    settled, _ = await again.settle(lease, "bridge")  # as stored: its number and MAC
    assert (settled.index, settled.mac) == (lease.index, lease.mac)
    guest = LinuxGuest(await again.attach(settled, "bridge", named=False))
    try:
        assert await in_thread(guest.tcp_echo, BEYOND) == b"hello"
    finally:
        guest.close()
        await again.stop(if_unused=False)
        await again.close()
        await again._uplinks.close()
    await until(lambda: host_state() == before)
    await network.close()


# Somebody else's, with our names


@pytest.mark.parametrize("kind", ["link", "table"])
async def test_what_is_somebody_else_s_is_refused_with_its_name_and_left_alone(
    own_host, namespaces_work, short_dir, kind
):
    if kind == "link":
        ip("link", "add", "banger-up1", "type", "bridge")
    else:
        nft("add", "table", "inet", "banger_host")
        nft("add", "chain", "inet", "banger_host", "theirs")
    before = host_state()
    network = bridge(short_dir)
    await network.start()
    with pytest.raises(RefusedError, match="not banger's") as caught:
        await attach(network)
    assert caught.value.hint in {
        "ip link show banger-up1",
        "sudo nft list table inet banger_host",
    }
    await network.stop(if_unused=False)
    await network.close()
    await network._uplinks.close()
    assert host_state() == before


# A host without nft


async def test_without_nft_both_modes_say_what_to_install(
    own_host, namespaces_work, short_dir, monkeypatch
):
    which = programs.shutil.which
    monkeypatch.setattr(
        programs.shutil, "which", lambda name, **o: None if name == "nft" else which(name, **o)
    )
    for network, mode in (
        (UserNetwork(short_dir, short_dir), "user"),
        (bridge(short_dir), "bridge"),
    ):
        await network.start()
        with pytest.raises(HostLacksError) as caught:
            await attach(network, mode)
        said = f"{caught.value.what} {caught.value.detail} {caught.value.hint}"
        assert "nft was not found" in said
        assert "apt-get install nftables" in said
        await network.stop()
        await network.close()
    assert tables() == []


async def test_nft_that_vanishes_keeps_no_prepared_guest_out_and_lets_no_other_in(
    network, guests, monkeypatch
):
    await guests.attach_and_close()
    which = programs.shutil.which
    monkeypatch.setattr(
        programs.shutil, "which", lambda name, **o: None if name == "nft" else which(name, **o)
    )
    guest = await guests.linux()
    assert await in_thread(guest.tcp_echo, BEYOND) == b"hello"
    held = network._space.guests()
    with pytest.raises(BangerError, match="nft was not found"):
        await guests.attach(outward=False)
    assert network._space.guests() == held
