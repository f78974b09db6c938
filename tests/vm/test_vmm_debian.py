"""A real Debian on QEMU, without daemon or CLI: what the guest sees of the command line, and how it ends.

The image is the one that the suite builds, or the directory that BANGER_TEST_IMAGE_DIR names.
"""

import asyncio
import contextlib
import io
import os
import re
import socket
import tarfile
import time
from pathlib import Path

import msgspec
import pytest

from banger.host import probe, proc
from banger.model.errors import BangerError
from banger.model.lease import Lease
from banger.model.machine import BootStack, LaunchRequest, NetworkAttachment, StorageDriver
from banger.model.manifest import ImageManifest
from banger.model.spec import VmSpec
from banger.storage.disks import DiskStorage
from banger.vmm.console import cap_log
from banger.vmm.qemu.backend import QemuVmm
from tests.framework.toy import vm_paths

LEASE = Lease("a" * 12, 4, "02:00:00:00:00:04", "10.0.0.4", 16, "10.0.255.2", "10.0.255.3")
BOOT_S = 90
LOOK = """say() { echo "LOOK $*" > /dev/ttyS0; }
for d in vda vdb vdc; do say "$d $(blockdev --getsize64 /dev/$d) $(cat /sys/block/$d/ro)"; done
say "mac $(cat /sys/class/net/eth0/address)"
say "ports $(cat /sys/class/virtio-ports/*/name | sort | tr '\\n' ' ')"
for p in /sys/class/virtio-ports/*; do [ "$(cat $p/name)" = banger.bulk.0 ] && port=/dev/${p##*/}; done
say "heard $(head -n 1 $port)"
while :; do say "uptime $(cut -d' ' -f1 /proc/uptime)"; sleep 0.5; done
"""
UNIT = """[Unit]
DefaultDependencies=no
After=local-fs.target
[Service]
ExecStart=/bin/bash /look.sh
"""
WANTS = "rootfs/etc/systemd/system/multi-user.target.wants"


@pytest.fixture(scope="session")
def boot(request):
    answer = probe.qemu()
    if not answer:
        pytest.skip(answer.why)
    directory = Path(
        os.environ.get("BANGER_TEST_IMAGE_DIR") or request.getfixturevalue("test_image")
    )
    manifest = msgspec.json.decode((directory / "manifest.json").read_bytes(), type=ImageManifest)
    names = ("vmlinux", "initramfs.img", "rootfs.img", "work-seed.img")
    return BootStack(*(directory / name for name in names), manifest.cmdline, manifest)


def identity(path, *, look=True):
    files = {"control/clock": f"{int(time.time())}\n".encode(), "control/seed": os.urandom(32)}
    if look:
        files |= {
            "rootfs/look.sh": LOOK.encode(),
            "rootfs/etc/systemd/system/look.service": UNIT.encode(),
        }
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(
            {str(up) for file in [*files, f"{WANTS}/x"] for up in Path(file).parents} - {"."}
        ):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(info)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo(f"{WANTS}/look.service")
        link.type, link.linkname = tarfile.SYMTYPE, "../look.service"
        archive.addfile(link)


@pytest.fixture
async def start(boot, tmp_path):
    begun = []

    async def launch(*, network=None, drive=identity, driver=StorageDriver.QCOW2):
        paths = vm_paths(tmp_path)
        spec = VmSpec(vcpus=2, memory_mib=512, disk_bytes=9 << 30, work_bytes=2 << 30)
        await DiskStorage().create(boot, spec, paths, driver)
        drive(paths.identity)
        request = LaunchRequest(
            "a" * 12, "box", spec, boot, paths, network or NetworkAttachment("none", None),
            DiskStorage().root(paths),
        )  # fmt: skip
        running = await QemuVmm().launch(request)
        begun.append(running)
        return running, paths

    yield launch
    for running in begun:
        await running.kill()
        await running.close()
        assert not proc.alive(running.identity)


async def wait_for(path, pattern):
    async with asyncio.timeout(BOOT_S):
        while not (found := re.search(pattern, path.read_text(errors="replace"))):
            await asyncio.sleep(0.05)
    return found


async def next_uptime(log):
    """The guest's clock, and ours when it said so."""

    def said():
        return re.findall(r"LOOK uptime ([\d.]+)\s", log.read_text(errors="replace"))

    before = len(said())
    async with asyncio.timeout(BOOT_S):
        while len(now := said()) == before:
            await asyncio.sleep(0.02)
    return float(now[-1]), time.monotonic()


@pytest.mark.parametrize(
    "driver", [StorageDriver.QCOW2, pytest.param(StorageDriver.COPY, marks=pytest.mark.long)]
)
async def test_the_guest_sees_its_drives_ports_nic_and_the_right_time_and_obeys_the_power_button(
    start, driver
):
    running, paths = await start(network=NetworkAttachment("qemu-user", LEASE), driver=driver)
    with socket.socket(socket.AF_UNIX) as bulk:
        bulk.connect(str(paths.bulk_socket(0)))  # long before the guest is up
        bulk.sendall(b"hello from the host\n")
        log = paths.console_log
        await wait_for(log, "banger: booted")
        assert (await wait_for(log, r"LOOK vda (\d+) 0"))[1] == str(9 << 30)
        assert (await wait_for(log, r"LOOK vdb (\d+) 0"))[1] == str(2 << 30)
        assert (await wait_for(log, r"LOOK vdc (\d+) 1"))[1] == str(paths.identity.stat().st_size)
        await wait_for(log, f"LOOK mac {LEASE.mac}")
        await wait_for(log, r"LOOK ports banger\.agent banger\.bulk\.0 banger\.bulk\.1 ")
        await wait_for(log, "LOOK heard hello from the host")

    off = []
    for _ in range(
        3
    ):  # a busy host delays a line now and then; a clock that runs wrong does so every time
        first = await next_uptime(log)
        await asyncio.sleep(5)
        last = await next_uptime(log)
        off.append((last[0] - first[0]) / (last[1] - first[1]) - 1)
        if abs(off[-1]) < 0.2:
            break
    assert abs(off[-1]) < 0.2, f"the guest's clock is off by {off}"

    assert cap_log(log, 200) is True  # under the running QEMU
    await asyncio.sleep(2)
    assert b"\0" not in log.read_bytes()

    ended = asyncio.create_task(running.wait())
    async with asyncio.timeout(BOOT_S):
        while (
            not ended.done()
        ):  # on a busy host logind may not listen yet, and a button is not heard afterwards
            with contextlib.suppress(BangerError):  # it ends just now
                await running.power_down()
            await asyncio.wait({ended}, timeout=20)
    assert ended.result().reason == "guest-shutdown"
    assert "reboot: Power down" in log.read_text(errors="replace")


async def test_a_guest_that_cannot_start_panics_and_the_console_says_why(start):
    running, paths = await start(drive=lambda path: path.write_bytes(b"no tar" * 1000))
    async with asyncio.timeout(BOOT_S):
        assert (await running.wait()).reason == "guest-panic"
    assert "banger: cannot read the identity drive" in paths.console_log.read_text(errors="replace")
