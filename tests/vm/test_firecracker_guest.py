"""The guest contract on a real Debian behind the Firecracker backend, its agent over vsock: a stand-in with QEMU plays Firecracker."""

import asyncio
import os
from pathlib import Path

import msgspec
import pytest

from banger.guest.connection import connect_guest
from banger.guest.identity import IdentityStore
from banger.host import probe
from banger.model.machine import (
    BootStack,
    IdentityRequest,
    LaunchRequest,
    NetworkAttachment,
    StorageDriver,
)
from banger.model.manifest import ImageManifest
from banger.model.spec import VmSpec
from banger.storage.disks import DiskStorage
from tests.framework.guest_contract import GuestContract, restart_agent
from tests.framework.played import played_vmm
from tests.framework.toy import vm_paths

BOOT_S = 120


@pytest.fixture(scope="module")
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


class Debian:
    """A VM that one event loop starts, others use, and the last one ends: as daemons do."""

    def __init__(self, boot, directory):
        self.paths = vm_paths(directory)
        self.vmm = played_vmm(directory / "bin")
        self.boot, self.directory = boot, directory

    async def launch(self):
        spec = VmSpec(vcpus=2, memory_mib=512, disk_bytes=9 << 30, work_bytes=2 << 30)
        await DiskStorage().create(self.boot, spec, self.paths, StorageDriver.COPY)
        await IdentityStore(self.directory).write(
            IdentityRequest("a" * 12, "box", None), self.paths
        )
        network = NetworkAttachment("none", None)
        root = DiskStorage().root(self.paths)
        request = LaunchRequest("a" * 12, "box", spec, self.boot, self.paths, network, root)
        running = await self.vmm.launch(request)
        self.identity = running.identity
        await running.close()

    async def kill(self):
        running = await self.vmm.adopt(self.identity, self.paths)
        if running is not None:
            await running.kill()
            await running.close()


@pytest.fixture(scope="module")
def debian(boot, tmp_path_factory):
    made = Debian(boot, tmp_path_factory.mktemp("fc"))
    asyncio.run(made.launch())
    yield made
    asyncio.run(made.kill())


@pytest.fixture
async def guest(debian):
    guest = connect_guest(debian.paths, "vsock")
    await guest.wait_connected(BOOT_S)
    yield guest
    await guest.close()


@pytest.mark.timeout(300)
class TestRealGuestOverVsock(GuestContract):
    """The contract."""


async def test_the_agent_is_reached_again_after_systemd_has_restarted_it(guest):
    await restart_agent(guest)


async def test_a_tcp_port_of_the_guest_is_reached_through_the_agent(guest):
    await guest.wait_services(BOOT_S)
    stream = await guest.proxy(22)
    assert (await stream.read()).startswith(b"SSH-2.0-")
    await stream.close()


@pytest.mark.timeout(300)
async def test_a_guest_that_is_shut_down_by_its_agent_ends_its_vmm(debian, guest):
    """The last test of the module: the VM is gone afterwards."""
    running = await debian.vmm.adopt(debian.identity, debian.paths)
    assert await running.status() == "running"
    await guest.shutdown()
    async with asyncio.timeout(BOOT_S):
        outcome = await running.wait()
    assert outcome.reason == "guest-shutdown"
    await running.close()
