"""Raw root disks: whose blocks they have."""

import os

import pytest

from banger.host import fs, probe
from banger.model.errors import HostLacksError
from banger.model.machine import StorageDriver
from banger.model.units import MIB
from banger.storage.disks import DiskStorage
from tests.framework.toy import toy_image, toy_spec, vm_paths


@pytest.fixture
def boot(tmp_path):
    boot = toy_image(tmp_path / "image")
    with boot.rootfs.open("r+b") as file:
        file.seek(32 * MIB)
        file.write(os.urandom(MIB))
    return boot


async def test_a_copy_has_the_images_data_and_blocks_of_its_own(boot, tmp_path):
    paths = vm_paths(tmp_path)
    spec = toy_spec(disk_bytes=96 * MIB)
    how = await DiskStorage("copy").create(boot, spec, paths, StorageDriver.COPY)
    assert how.startswith("copy")
    assert paths.overlay_raw.stat().st_size == 96 * MIB
    assert paths.overlay_raw.read_bytes()[: 64 * MIB] == boot.rootfs.read_bytes()
    assert MIB <= fs.allocated_bytes(paths.overlay_raw) < 32 * MIB  # holes stay holes


async def test_a_reflink_that_cannot_be_is_an_error_and_no_copy(boot, tmp_path):
    if probe.reflink(tmp_path):
        pytest.skip("blocks can be shared here")
    paths = vm_paths(tmp_path)
    with pytest.raises(HostLacksError, match="cannot work on the disks"):
        await DiskStorage().create(boot, toy_spec(), paths, StorageDriver.REFLINK)
    assert list(paths.state.iterdir()) == []


async def test_the_configured_driver_is_what_is_chosen(boot, tmp_path):
    paths = vm_paths(tmp_path)
    formats = [driver.disk_format for driver in (StorageDriver.QCOW2, StorageDriver.COPY)]
    choice = await DiskStorage("copy").choose(boot, paths, "qemu", formats)
    assert choice.driver is StorageDriver.COPY
    if not probe.reflink(tmp_path):
        with pytest.raises(HostLacksError) as raised:
            await DiskStorage("reflink").choose(boot, paths, "qemu", formats)
        assert raised.value.hint == f"sudo banger setup storage --state-dir {tmp_path}"
