"""Which VMM runs a VM."""

import pytest

from banger.engine.backends import Backends
from banger.model.errors import HostLacksError, NotFoundError, RefusedError
from banger.model.machine import DiskFormat
from banger.model.spec import VmmChoice
from tests.framework.fakes.vmm import FakeVmm

QCOW2, RAW = DiskFormat.QCOW2, DiskFormat.RAW


def vmm(name, formats, broken=""):
    made = FakeVmm()
    made.name, made.root_formats, made.broken = name, formats, broken
    return made


@pytest.fixture
def firecracker():
    return vmm("firecracker", (RAW,))


@pytest.fixture
def qemu():
    return vmm("qemu", (QCOW2, RAW))


@pytest.fixture
def backends(firecracker, qemu):
    return Backends([firecracker, qemu])


@pytest.mark.parametrize("root", [None, RAW])
async def test_auto_takes_the_preferred_one(backends, firecracker, root):
    assert await backends.pick(VmmChoice.AUTO, root) is firecracker


async def test_auto_takes_the_next_where_the_preferred_one_cannot_run(backends, firecracker, qemu):
    firecracker.broken = "no KVM"
    assert await backends.pick(VmmChoice.AUTO, None) is qemu


async def test_auto_takes_the_one_that_reads_the_disk(backends, qemu):
    assert await backends.pick(VmmChoice.AUTO, QCOW2) is qemu


async def test_an_asked_one_is_never_replaced(backends, firecracker, qemu):
    assert await backends.pick(VmmChoice.QEMU, None) is qemu
    firecracker.broken = "no KVM"
    with pytest.raises(HostLacksError) as raised:
        await backends.pick(VmmChoice.FIRECRACKER, None)
    assert "no KVM" in raised.value.detail


async def test_a_disk_that_the_asked_one_cannot_read_is_refused_with_a_way_out(backends):
    with pytest.raises(RefusedError, match="qcow2") as raised:
        await backends.pick(VmmChoice.FIRECRACKER, QCOW2)
    assert "--vmm auto" in raised.value.hint


async def test_where_none_can_run_every_reason_is_told(backends, firecracker, qemu):
    firecracker.broken, qemu.broken = "no KVM", "no QEMU"
    with pytest.raises(HostLacksError) as raised:
        await backends.pick(VmmChoice.AUTO, None)
    assert "no QEMU" in raised.value.detail
    assert "no KVM" in raised.value.detail


async def test_a_host_without_the_asked_kind_says_so(qemu):
    with pytest.raises(HostLacksError, match="firecracker"):
        await Backends([qemu]).pick(VmmChoice.FIRECRACKER, None)


def test_a_vms_own_backend_is_found_by_name(backends, qemu):
    assert backends.named("qemu") is qemu
    with pytest.raises(NotFoundError, match="xen"):
        backends.named("xen")
