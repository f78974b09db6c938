"""banger-helper's snapshot devices for ordinary users: what is made for whom, that nothing of it stays, and what an attacker gets.

Loop devices are real everywhere; the device mapper is where the kernel has one (a test host: `scripts/testhost.sh -k snapshots`), else a fake that
holds loop devices as the kernel does.
"""

import asyncio
import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import struct
import tempfile
import time
from pathlib import Path

import pytest

from banger.helper.verbs import VERBS
from banger.host import dm, faults, loop, probe
from banger.host.dm import Mapping
from banger.host.undo import UndoStack
from banger.model.errors import BangerError, HostLacksError, InvalidInputError, RefusedError
from banger.model.machine import StorageDriver
from banger.model.units import GIB, MIB
from banger.storage.disks import DiskStorage
from banger.storage.snapshots.client import HelperSnapshots
from banger.storage.snapshots.direct import DirectSnapshots
from banger.storage.snapshots.port import SnapshotKey
from banger.storage.snapshots.rules import Quota
from banger.wire.helper import ask
from tests.framework.as_user import as_user
from tests.framework.helper_host import GROUP, OTHER, USER, asked
from tests.framework.snapshot_host import client_of, loops_over, none_left, snapshot_host
from tests.framework.toy import toy_image, toy_spec, vm_paths

if not (probe.root() and probe.loop()):
    pytest.skip("no loop devices here", allow_module_level=True)

pytestmark = pytest.mark.device_mapper
IMAGE_BYTES = 4 * MIB
SECTORS = IMAGE_BYTES // 512


@pytest.fixture
async def host(short_dir):
    async with snapshot_host(short_dir, Quota(4, GIB)) as running:
        yield running


@pytest.fixture
def home():
    """Directories of two users, with an image and some stores in each."""
    made = {}
    for uid in (0, USER, OTHER):
        directory = Path(tempfile.mkdtemp(prefix="bgh-", dir="/tmp"))
        (directory / "image").write_bytes(os.urandom(IMAGE_BYTES))
        for number in range(6):
            with (directory / f"store{number}").open("wb") as file:
                file.truncate(MIB)
        for path in (*directory.iterdir(), directory):
            os.chown(path, uid, uid)
        made[uid] = directory
    yield made
    files = [path for each in made.values() for path in each.iterdir() if path.is_file()]
    gone = none_left(*files)
    for directory in made.values():
        shutil.rmtree(directory)
    assert gone, "loop devices were left"


async def as_member(uid, work, *arguments):
    return await asyncio.to_thread(as_user, uid, work, *arguments, groups=[GROUP])


def attach(path, home, number=0, *, vm=None, sectors=SECTORS, image=os.O_RDONLY, store=os.O_RDWR):
    """As a daemon does it."""
    base, changes = os.open(home / "image", image), os.open(home / f"store{number}", store)
    vm = 100 + number if vm is None else vm
    try:
        return asked(path, "snapshot.attach", base, changes, installation=7, vm=vm, sectors=sectors)
    finally:
        os.close(base)
        os.close(changes)


async def attached(host, home, uid=USER, number=0, **options):
    reply = await as_member(uid, lambda: attach(host.socket, home[uid], number, **options))
    assert reply["ok"], reply
    return reply["result"]


async def detach(host, slot, uid=USER):
    return await as_member(uid, lambda: asked(host.socket, "snapshot.detach", slot=slot))


def owner(host, found):
    if host.real:
        return os.stat(found["device"]).st_uid
    return host.mapper.owners.get(f"banger-s{found['slot']}", 0)


async def test_what_attach_makes_is_what_detach_takes_back(host, home):
    image, store = home[USER] / "image", home[USER] / "store0"
    found = await attached(host, home)
    assert (found["uid"], found["installation"], found["vm"]) == (USER, 7, 100)
    assert found["disk_bytes"] == IMAGE_BYTES
    assert stat.S_ISBLK(os.stat(found["device"]).st_mode)
    assert owner(host, found) == USER
    assert await host.names() == {"banger-s1"}
    (base,), (changes,) = loops_over(image), loops_over(store)
    assert [Path(f"/sys/block/{each.name}/ro").read_text() for each in (base, changes)] == ["1\n", "0\n"]  # fmt: skip
    for _ in range(2):
        assert (await detach(host, found["slot"]))["ok"]
    assert await host.names() == set()
    assert none_left(image, store)
    assert host.service.ledger.rows("snapshot") == []
    lines = [(line["what"], line["ok"]) for line in host.audited()]
    assert lines == [("snapshot.attach", True), ("snapshot.detach", True), ("snapshot.detach", True)]  # fmt: skip


def content(path, data=None):
    with open(path, "r+b", buffering=0) as device:
        if data is not None:
            device.write(data)
            os.fsync(device.fileno())
        os.lseek(device.fileno(), 0, os.SEEK_SET)
        return device.read(MIB)


async def test_its_owner_writes_to_it_and_nobody_else_may_open_it(host, home):
    if not host.real:
        pytest.skip("the device is the kernel's")
    image = (home[USER] / "image").read_bytes()
    found = await attached(host, home)
    assert await as_member(USER, content, found["device"]) == image[:MIB]
    with pytest.raises(AssertionError, match="PermissionError"):
        await as_member(OTHER, content, found["device"])
    assert (await as_member(USER, content, found["device"], b"x" * 4096))[:4096] == b"x" * 4096
    await detach(host, found["slot"])
    found = await attached(host, home)
    assert (await as_member(USER, content, found["device"]))[: 2 * 4096] == b"x" * 4096 + image[4096:8192]  # fmt: skip
    assert (home[USER] / "image").read_bytes() == image
    await detach(host, found["slot"])


async def test_udev_leaves_it_to_its_owner(host, home):
    """An event of the device, as one comes whenever somebody has written to it, sets its mode anew."""
    udevadm = shutil.which("udevadm")
    if not host.real or not Path("/run/udev/control").exists() or udevadm is None:
        pytest.skip("there is no udev with the kernel's devices here")
    found = await attached(host, home)
    for words in (["trigger", "--action=change", found["device"]], ["settle", "--timeout=20"]):
        process = await asyncio.create_subprocess_exec(udevadm, *words)
        assert await process.wait() == 0
    await as_member(USER, content, found["device"], b"y" * 4096)
    with pytest.raises(AssertionError, match="PermissionError"):
        await as_member(OTHER, content, found["device"])
    await detach(host, found["slot"])


async def test_a_node_that_somebody_keeps_opens_nothing_once_it_is_taken_back(host, home):
    """Else it would open whatever device gets the number next."""
    if not host.real:
        pytest.skip("the node is the kernel's")
    found = await attached(host, home)
    kept = os.open(found["device"], os.O_PATH)
    await detach(host, found["slot"])
    try:
        with pytest.raises(AssertionError, match="PermissionError"):
            await as_member(USER, content, f"/proc/self/fd/{kept}")
    finally:
        os.close(kept)


async def test_a_disk_that_is_larger_than_its_image_lies_over_zeros(host, home):
    found = await attached(host, home, sectors=2 * SECTORS)
    assert await host.names() == {"banger-s1", "banger-s1-base"}
    await detach(host, found["slot"])
    assert await host.names() == set()


async def test_an_images_loop_device_is_shared_by_all_and_goes_with_the_last(host, home):
    image = home[USER] / "image"
    image.chmod(0o644)
    home[USER].chmod(0o755)
    shutil.copy(home[OTHER] / "store0", home[OTHER] / "copy")
    (home[OTHER] / "image").unlink()
    (home[OTHER] / "image").symlink_to(image)
    mine = [await attached(host, home, number=number) for number in range(2)]
    theirs = await attached(host, home, OTHER)
    assert len(loops_over(image)) == 1
    for found in mine:
        await detach(host, found["slot"])
        assert len(loops_over(image)) == 1
    await detach(host, theirs["slot"], OTHER)
    assert none_left(image)


async def test_a_loop_device_that_is_not_the_helpers_is_not_shared(host, home):
    """Somebody else's may be mounted, or of another size."""
    image = home[USER] / "image"
    with loop.held(image, read_only=True, shared=True) as theirs:
        found = await attached(host, home)
        assert len(loops_over(image)) == 2
        assert theirs.path in loops_over(image)
        await detach(host, found["slot"])


async def test_a_vm_that_asks_again_gets_its_device_anew(host, home):
    first = await attached(host, home)
    again = await attached(host, home, sectors=2 * SECTORS)
    assert again["disk_bytes"] == 2 * first["disk_bytes"]
    assert await host.names() == {f"banger-s{again['slot']}", f"banger-s{again['slot']}-base"}
    await detach(host, again["slot"])


async def test_two_devices_over_one_store_are_refused(host, home):
    found = await attached(host, home)
    reply = await as_member(USER, lambda: attach(host.socket, home[USER], vm=999))
    assert reply["error"]["code"] == "refused"
    assert "snapshot 1's" in reply["error"]["what"]
    await detach(host, found["slot"])


async def test_a_store_grows_but_never_beyond_what_its_disk_can_need(host, home):
    found = await attached(host, home)
    store = home[USER] / "store0"
    (device,) = loops_over(store)

    async def size_after(size_bytes):
        os.truncate(store, size_bytes)
        result = await ask(host.socket, "snapshot.grown", slot=found["slot"])
        assert result == {"adopted": True}
        return int(Path(f"/sys/block/{device.name}/size").read_text()) * 512

    assert await size_after(2 * MIB) == 2 * MIB
    assert await size_after(1 << 40) == dm.store_limit_bytes(IMAGE_BYTES)
    os.truncate(store, 2 * MIB)
    await detach(host, found["slot"])
    assert await ask(host.socket, "snapshot.grown", slot=found["slot"]) == {"adopted": False}


async def test_a_sender_that_switches_its_descriptor_to_append_moves_no_write(host, home):
    store = home[USER] / "store0"
    base, changes = os.open(home[USER] / "image", os.O_RDONLY), os.open(store, os.O_RDWR)
    found = await ask(host.socket, "snapshot.list")  # the helper serves root, whose these are not
    assert found["snapshots"] == []
    os.chown(store, 0, 0)
    made = await ask(
        host.socket, "snapshot.attach", descriptors=[base, changes],
        installation=7, vm=1, sectors=SECTORS,
    )  # fmt: skip
    fcntl.fcntl(changes, fcntl.F_SETFL, os.O_APPEND)
    (device,) = loops_over(store)
    if not host.real:
        await asyncio.to_thread(content, device, b"z" * 4096)
        assert store.read_bytes()[:4096] == b"z" * 4096
    else:
        await asyncio.to_thread(content, made["device"], b"z" * 4096)
    assert store.stat().st_size == MIB
    os.close(base)
    os.close(changes)
    await ask(host.socket, "snapshot.detach", slot=made["slot"])


# A daemon's way to it


async def test_a_daemon_finds_and_sweeps_its_own_and_nobody_elses(host, home):
    directory = home[0]
    client = client_of(host)
    assert (await client.available()).found == "banger-helper"
    keys = [SnapshotKey("1" * 12, f"{n}" * 12) for n in (1, 2)] + [SnapshotKey("2" * 12, "1" * 12)]
    for number, key in enumerate(keys):
        await client.open(key, directory / "image", directory / f"store{number}", IMAGE_BYTES)
    restarted = HelperSnapshots(host.socket)
    assert set(await restarted.statuses("1" * 12)) == {"1" * 12, "2" * 12}
    (said,) = await restarted.sweep("1" * 12, frozenset({"1" * 12}))
    assert "VM 222222222222, which does not run, was removed" in said
    assert await restarted.adopt_growth(keys[0], directory / "store0")
    assert (await restarted.close(keys[0])).disk_bytes == IMAGE_BYTES
    assert await restarted.close(keys[0]) is None
    assert not await restarted.adopt_growth(keys[0], directory / "store0")
    assert len(await host.names()) == 1
    await restarted.close(keys[2])


async def test_without_a_helper_there_is_nothing_to_remove_and_the_reason_is_told(short_dir):
    client = HelperSnapshots(short_dir / "none.sock")
    answer = await client.available()
    assert "needs root or banger-helper; banger-helper does not run" in answer.why
    assert answer.hint == "sudo banger setup helper --storage"
    assert await client.close(SnapshotKey("1" * 12, "1" * 12)) is None
    assert await client.sweep("1" * 12, frozenset()) == []


async def test_an_older_helper_or_a_host_without_a_device_mapper_is_told(host, monkeypatch):
    client = client_of(host)
    no = probe.Answer(ok=False, why="no snapshot target", hint="sudo modprobe dm_snapshot")
    monkeypatch.setattr(host.service, "_able", lambda: no)
    answer = await client.available()
    assert (answer.why, answer.hint) == (f"banger-helper: {no.why}", no.hint)
    with pytest.raises(HostLacksError, match="has no snapshots"):
        await ask(
            host.socket, "snapshot.attach", descriptors=[0, 0], installation=1, vm=1, sectors=8
        )
    monkeypatch.delitem(VERBS, "snapshot.list")
    assert "knows no snapshots" in (await client.available()).why


async def test_many_requests_of_one_daemon_are_made_one_after_the_other_rather_than_refused(host):
    client = client_of(host)
    began = time.monotonic()
    await asyncio.gather(*(client.statuses("1" * 12) for _ in range(60)))
    assert time.monotonic() - began > 1  # beyond the burst they wait


async def test_a_users_store_grows_ahead_of_what_is_written_and_gives_back_the_rest(
    host, tmp_path, monkeypatch
):
    """The driver through the helper, as a daemon that is not root has it."""
    monkeypatch.setattr("banger.storage.snapshot.AHEAD_BYTES", 8 * MIB)
    storage, boot = DiskStorage("dm-snapshot", client_of(host)), toy_image(tmp_path / "image")
    paths, spec = vm_paths(tmp_path), toy_spec()
    await storage.create(boot, spec, paths, StorageDriver.DM_SNAPSHOT)
    disk = await storage.open_root(boot, spec, paths)
    for number in range(4):
        if host.real:
            with open(disk.path, "r+b", buffering=0) as device:
                os.pwrite(device.fileno(), os.urandom(6 * MIB), number * 6 * MIB)
                os.fsync(device.fileno())
        else:
            host.mapper.used["banger-s1"] = (number + 1) * 6 * MIB
        (fill,) = await storage.tend([paths])
        assert fill.trouble == ""
        assert 8 * MIB <= fill.size_bytes - fill.used_bytes <= 12 * MIB
        assert fill.used_bytes >= (number + 1) * 6 * MIB
        assert paths.overlay_cow.stat().st_size == fill.size_bytes
    await storage.close_root(paths)
    assert paths.overlay_cow.stat().st_size <= fill.used_bytes + 2 * MIB
    assert none_left(boot.rootfs, paths.overlay_cow)


async def test_a_helper_that_is_away_is_told_once_and_vms_go_on(short_dir, tmp_path, caplog):
    async with snapshot_host(short_dir, fake=True) as host:
        storage, boot = DiskStorage("dm-snapshot", client_of(host)), toy_image(tmp_path / "image")
        paths, spec = vm_paths(tmp_path), toy_spec()
        await storage.create(boot, spec, paths, StorageDriver.DM_SNAPSHOT)
        await storage.open_root(boot, spec, paths)
        away = host.socket.with_name("away")
        for _ in range(2):
            host.socket.rename(away)
            assert [await storage.tend([paths]) for _ in range(3)] == [[], [], []]
            away.rename(host.socket)
            (fill,) = await storage.tend([paths])
            assert fill.trouble == ""
        assert sum("nobody says" in line for line in caplog.messages) == 2
        await storage.close_root(paths)


async def test_a_store_that_was_full_is_told_through_the_helper(short_dir, tmp_path):
    async with snapshot_host(short_dir, fake=True) as host:
        storage, boot = DiskStorage("dm-snapshot", client_of(host)), toy_image(tmp_path / "image")
        paths, spec = vm_paths(tmp_path), toy_spec()
        await storage.create(boot, spec, paths, StorageDriver.DM_SNAPSHOT)
        await storage.open_root(boot, spec, paths)
        host.mapper.broken["banger-s1"] = "Invalid"
        (fill,) = await storage.tend([paths])
        assert fill.trouble == "its root disk is lost (Invalid)"
        await storage.close_root(paths)


# Attackers


def odd_files():
    read_end, write_end = os.pipe()
    return [
        os.open("/", os.O_RDONLY),
        os.open("/dev/null", os.O_RDWR),
        os.open("/proc/self/status", os.O_RDONLY),
        os.open("/proc/self/comm", os.O_RDWR),
        os.memfd_create("memory"),
        os.eventfd(0),
        os.pidfd_open(os.getpid()),
        socket.socket(socket.AF_UNIX).detach(),
        read_end,
        write_end,
    ]


def attach_odd(path, home):
    """Every odd file as image, with a good store, and as store, with a good image."""
    base, changes = os.open(home / "image", os.O_RDONLY), os.open(home / "store0", os.O_RDWR)
    odd = [*odd_files(), os.open(home / "image", os.O_PATH), os.open(home / "store1", os.O_WRONLY)]
    replies = []
    for number, each in enumerate(odd):
        for pair in ((each, changes), (base, each)):
            time.sleep(0.1)  # not the flood that is refused
            replies.append((number, asked(path, "snapshot.attach", *pair, installation=1, vm=1, sectors=SECTORS)))  # fmt: skip
    return replies


async def test_a_descriptor_that_is_no_file_of_the_host_is_refused(host, home):
    open_before = len(os.listdir("/proc/self/fd"))
    for number, reply in await as_member(USER, attach_odd, host.socket, home[USER]):
        assert not reply["ok"], number
        assert reply["error"]["code"] in {"invalid", "refused"}, (number, reply)
        assert reply["error"]["hint"]
    assert await host.names() == set()
    assert host.service.ledger.rows("snapshot") == []
    end = time.monotonic() + 30

    def busy():  # a thread closes, and then says so
        return len(os.listdir("/proc/self/fd")) > open_before or host.policy._open

    while busy() and time.monotonic() < end:
        await asyncio.sleep(0.05)
    assert len(os.listdir("/proc/self/fd")) <= open_before
    assert host.policy._open == {}


async def test_a_store_that_is_not_the_callers_or_not_open_for_writing_is_refused(host, home):
    (home[0] / "store0").chmod(0o666)
    roots = os.open(home[0] / "store0", os.O_RDWR)
    mine = os.open(home[USER] / "image", os.O_RDONLY)

    def with_roots():
        return asked(host.socket, "snapshot.attach", mine, roots, installation=1, vm=1, sectors=SECTORS)  # fmt: skip

    reply = await as_member(USER, with_roots)
    assert reply["error"]["code"] == "refused"
    assert "the store is not user" in reply["error"]["what"]
    os.close(roots)
    os.close(mine)
    reply = await as_member(USER, lambda: attach(host.socket, home[USER], store=os.O_RDONLY))
    assert "not open for reading and writing" in reply["error"]["what"]
    reply = await as_member(USER, lambda: attach(host.socket, home[USER], image=os.O_WRONLY))
    assert "the image is not open for reading" in reply["error"]["what"]


def in_own_mounts(path, home):
    """A file system that only the caller's own namespace has; FUSE would be one too."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    assert libc.unshare(0x10000000 | 0x00020000) == 0  # user and mount namespace
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        Path(f"/proc/self/{name}").write_text(text)
    assert libc.mount(b"x", os.fsencode(home), b"tmpfs", 0, None) == 0
    for name in ("image", "store0"):
        with open(home / name, "wb") as file:
            file.truncate(IMAGE_BYTES)
    return attach(path, home)


async def test_a_file_system_of_the_callers_own_making_is_refused(host, home):
    reply = await as_member(USER, in_own_mounts, host.socket, home[USER])
    assert reply["error"]["code"] == "refused"
    assert "on no file system of this host" in reply["error"]["what"]


def with_lease(path, home):
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    held = os.open(home / "store0", os.O_RDWR)
    fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    base = os.open(home / "image", os.O_RDONLY)
    began = time.monotonic()
    reply = asked(path, "snapshot.attach", base, held, installation=1, vm=1, sectors=SECTORS)
    return reply, time.monotonic() - began


async def test_a_lease_makes_nobody_wait(host, home):
    reply, took_s = await as_member(USER, with_lease, host.socket, home[USER])
    assert reply["error"]["what"] == "the store is in use"
    assert took_s < 30  # the kernel takes a lease away after 45


def deleted(path, home):
    held = os.open(home / "store0", os.O_RDWR)
    (home / "store0").unlink()
    base = os.open(home / "image", os.O_RDONLY)
    return asked(path, "snapshot.attach", base, held, installation=1, vm=1, sectors=SECTORS)


async def test_a_store_that_was_deleted_is_refused(host, home):
    reply = await as_member(USER, deleted, host.socket, home[USER])
    assert reply["error"]["what"] == "the store was deleted"


@pytest.mark.parametrize(
    ("installation", "vm", "sectors"),
    [(-1, 1, SECTORS), (1 << 48, 1, SECTORS), (1, 1 << 60, SECTORS), (1, 1, 0), (1, 1, -8), (1, 1, 1 << 40), (1, 1, SECTORS - 1)],
)  # fmt: skip
async def test_numbers_out_of_range_are_refused(host, home, installation, vm, sectors):
    base, store = os.open(home[0] / "image", os.O_RDONLY), os.open(home[0] / "store0", os.O_RDWR)
    with pytest.raises(InvalidInputError) as caught:
        await ask(
            host.socket, "snapshot.attach", descriptors=[base, store], installation=installation, vm=vm, sectors=sectors,
        )  # fmt: skip
    assert caught.value.hint
    os.close(base)
    os.close(store)


@pytest.mark.parametrize("head", [b"junk", struct.pack("<4I", 0x70416E53, 1, 1, 1), struct.pack("<4I", 0x70416E53, 1, 9, 8)])  # fmt: skip
async def test_a_store_that_the_kernel_would_read_otherwise_is_refused(host, home, head):
    (home[USER] / "store0").write_bytes(head.ljust(MIB, b"\1"))
    reply = await as_member(USER, lambda: attach(host.socket, home[USER]))
    assert reply["error"]["what"] == "the store is none of a snapshot"


async def test_a_store_that_is_changed_while_it_is_looked_at_is_refused_and_nothing_stays(
    short_dir, home
):
    async with snapshot_host(short_dir, fake=True) as host:
        host.mapper.chunk = 1  # what the kernel found, after we had looked
        reply = await as_member(USER, lambda: attach(host.socket, home[USER]))
        assert "was changed meanwhile" in reply["error"]["what"]
        assert await host.names() == set()
        assert host.service.ledger.rows("snapshot") == []


async def test_beyond_the_quota_snapshots_are_refused_to_that_user_only(host, home):
    slots = [(await attached(host, home, number=number))["slot"] for number in range(4)]
    reply = await as_member(USER, lambda: attach(host.socket, home[USER], 4))
    assert reply["error"]["code"] == "refused"
    assert "quota" in reply["error"]["detail"]
    again = await attached(host, home, number=0)  # in place of its own first
    theirs = await attached(host, home, OTHER)
    for slot in {*slots, again["slot"]}:
        await detach(host, slot)
    await detach(host, theirs["slot"], OTHER)


async def test_beyond_the_quota_of_bytes_disks_are_refused(host, home):
    reply = await as_member(USER, lambda: attach(host.socket, home[USER], sectors=2 * GIB // 512))
    assert "disks of 2G" in reply["error"]["what"]
    assert await host.names() == set()


async def test_nobody_sees_grows_or_takes_another_users_snapshot(host, home):
    found = await attached(host, home)
    slot = found["slot"]
    listed = await as_member(OTHER, lambda: asked(host.socket, "snapshot.list"))
    assert listed["result"]["snapshots"] == []
    assert (await detach(host, slot, OTHER))["error"]["code"] == "not-found"
    grown = await as_member(OTHER, lambda: asked(host.socket, "snapshot.grown", slot=slot))
    assert grown["result"] == {"adopted": False}
    (own,) = (await ask(host.socket, "snapshot.list"))["snapshots"]  # root's view
    assert (own["slot"], own["uid"]) == (slot, USER)
    assert await host.names() == {"banger-s1"}
    await ask(host.socket, "snapshot.detach", slot=slot)


# Bad days


async def test_somebody_elses_mapping_of_our_name_is_left_alone(short_dir, home):
    async with snapshot_host(short_dir, fake=True) as host:
        host.mapper.made["banger-s1"] = Mapping("banger-s1", "", 250)
        found = await attached(host, home)
        assert found["slot"] == 2
        await detach(host, 2)
        assert set(host.mapper.made) == {"banger-s1"}
        del host.mapper.made["banger-s1"]


async def test_a_busy_device_is_told_is_nobodys_meanwhile_and_holds_up_nobody_else(
    short_dir, home, monkeypatch
):
    async with snapshot_host(short_dir, fake=True) as host:
        found = await attached(host, home)
        host.mapper.busy.add("banger-s1")
        reply = await detach(host, found["slot"])
        assert reply["error"]["what"] == "snapshot 1 is in use"
        assert owner(host, found) == 0
        waiting, real = asyncio.Event(), host.mapper.remove

        async def slow(uuid, *, timeout_s):
            await waiting.wait()
            await real(uuid, timeout_s=timeout_s)

        monkeypatch.setattr(host.mapper, "remove", slow)
        removing = asyncio.create_task(detach(host, found["slot"]))
        await asyncio.sleep(0.2)
        theirs = await attached(host, home, OTHER)
        assert not removing.done()
        host.mapper.busy.clear()
        waiting.set()
        assert (await removing)["ok"]
        await detach(host, theirs["slot"], OTHER)


async def test_a_real_device_that_is_open_is_in_use_until_it_is_closed(host, home, monkeypatch):
    if not host.real:
        pytest.skip("only a kernel knows")
    monkeypatch.setattr("banger.storage.snapshots.service.REMOVE_S", 0.5)
    found = await attached(host, home)
    with open(found["device"], "rb"):
        assert (await detach(host, found["slot"]))["error"]["code"] == "refused"
    assert (await detach(host, found["slot"]))["ok"]
    assert await host.names() == set()


async def test_after_a_restart_of_the_host_rows_are_struck_and_all_begins_anew(short_dir, home):
    async with snapshot_host(short_dir, fake=True) as host:
        await attached(host, home)
        host.service.close()
        host.mapper.close()  # devices are gone, rows are there
        path = short_dir / "state" / "snapshots.json"
        content_ = json.loads(path.read_text())
        content_["rows"][0]["boot"] = "another"
        path.write_text(json.dumps(content_))
        await host.service.start()
        assert host.service.ledger.rows("snapshot") == []
        found = await attached(host, home)
        await detach(host, found["slot"])


async def test_a_helper_that_lost_the_device_mapper_strikes_nothing(short_dir, home):
    async with snapshot_host(short_dir, fake=True) as host:
        found = await attached(host, home)
        host.mapper.there = False
        reply = await detach(host, found["slot"])
        assert reply["error"]["hint"] == "sudo banger setup helper --storage"
        host.service.close()
        await host.service.start()
        assert await host.service.list(0) == []
        host.mapper.there = True
        assert (await detach(host, found["slot"]))["ok"]
        assert await host.names() == set()


async def test_a_helper_serves_where_the_device_mapper_does_not_answer(
    short_dir, home, monkeypatch
):
    async with snapshot_host(short_dir, fake=True) as host:
        found = await attached(host, home)
        host.service.close()

        async def broken():
            raise HostLacksError("dmsetup is not installed", hint="sudo apt-get install dmsetup")

        with monkeypatch.context() as patched:
            patched.setattr(host.mapper, "mappings", broken)
            await host.service.start()
            assert (await detach(host, found["slot"]))["error"]["what"] == "dmsetup is not installed"  # fmt: skip
        assert (await detach(host, found["slot"]))["ok"]


async def test_a_second_helper_is_refused(host):
    with pytest.raises(RefusedError, match="another process's"):
        await host.another().start()


class Killed(BaseException):
    """In place of SIGKILL: nothing is undone, descriptors are closed."""


POINTS = [
    "attach.intended", "attach.loops", "attach.base", "attach.made", "attach.given", "attach.done",
    "detach.taken", "detach.disk", "detach.base", "detach.done",
]  # fmt: skip


async def whole_life(host, numbers, base, store):
    made = await host.service.attach(0, numbers, base, store)
    await host.service.detach(0, made.slot)


@pytest.mark.parametrize("where", POINTS)
async def test_a_helper_that_is_killed_between_any_two_steps_is_followed_by_one_that_puts_it_right(
    short_dir, home, monkeypatch, where
):
    """The real SIGKILL is in `test_dm_helper.py`; this is every step, on real loop devices."""
    async with snapshot_host(short_dir) as host:
        base, store = (
            os.open(home[0] / "image", os.O_RDONLY),
            os.open(home[0] / "store0", os.O_RDWR),
        )
        numbers = (1, 2, 2 * SECTORS)

        async def killed(name):
            if name == f"snapshot.{where}":
                raise Killed

        async def nothing(self):
            self._inverses.clear()

        with monkeypatch.context() as patched:
            patched.setattr(faults, "point", killed)
            patched.setattr(UndoStack, "_run_all", nothing)
            with pytest.raises(Killed):
                await whole_life(host, numbers, base, store)
        host.service.close()
        host.service = host.another()
        await host.service.start()
        rows, names = host.service.ledger.rows("snapshot"), await host.names()
        whole = {"attach.done", "detach.taken"}
        assert names == ({"banger-s1", "banger-s1-base"} if where in whole else set())
        assert len(rows) == (1 if where in whole else 0)
        found = await host.service.attach(0, numbers, base, store)
        assert len(await host.service.list(0)) == 1
        await host.service.detach(0, found.slot)
        assert await host.names() == set()
        assert host.service.ledger.rows("snapshot") == []
        os.close(base)
        os.close(store)


@pytest.mark.parametrize("where", POINTS)
async def test_a_step_that_fails_is_undone(host, home, where):
    """Of an attach; a detach that fails is made again."""
    faults.load(f"snapshot.{where}=error")
    base, store = os.open(home[0] / "image", os.O_RDONLY), os.open(home[0] / "store0", os.O_RDWR)
    try:
        with pytest.raises(BangerError, match="fault injected"):
            await whole_life(host, (1, 2, 2 * SECTORS), base, store)
    finally:
        faults.load("")
        os.close(base)
        os.close(store)
    for row in host.service.ledger.rows("snapshot"):
        assert where in {"attach.done", "detach.taken", "detach.disk", "detach.base"}
        await host.service.detach(0, int(row.key))
    assert await host.names() == set()


async def test_how_long_it_takes(host, home):
    """Beside root's own way, where there is a device mapper: both by turns, the least of each, since others use the processors too."""
    directory, key = home[0], SnapshotKey("1" * 12, "2" * 12)
    ways = {"banger-helper": client_of(host), **({"direct": DirectSnapshots()} if host.real else {})}  # fmt: skip
    took = {name: [] for name in ways}
    for _ in range(7):
        for name, way in ways.items():
            began = time.monotonic()
            await way.open(key, directory / "image", directory / "store0", IMAGE_BYTES)
            took[name].append((time.monotonic() - began) * 1000)
            await way.close(key)
    print("least of 7 attaches:", ", ".join(f"{name} {min(ms):.1f} ms" for name, ms in took.items()))  # fmt: skip
