"""A VMM that opens its TAP by name, in the namespaces of the network: with a stand-in that boots a toy kernel."""

import contextlib
import os

import pytest

from banger.host import probe, proc
from banger.model.machine import DiskFormat
from tests.framework.played import played_vmm
from tests.framework.toy import toy_request

pytestmark = pytest.mark.vm


@contextlib.contextmanager
def held(attachment):
    """The descriptors are the receiver's to close."""
    try:
        yield attachment
    finally:
        for descriptor in attachment.descriptors:
            os.close(descriptor)


async def test_firecracker_runs_where_its_tap_is_and_keeps_it_until_it_ends(network, short_dir):
    answer = probe.qemu()
    if not answer:
        pytest.skip(answer.why)
    lease = network.plan_lease("a" * 12, [])
    with held(await network.attach(lease, "auto", named=True)) as attachment:
        request = toy_request(short_dir / "vm", network=attachment, root=DiskFormat.RAW)
        vmm = played_vmm(short_dir / "bin")
        running = await vmm.launch(request)
        here = {
            kind: os.stat(f"/proc/{running.identity.pid}/ns/{kind}").st_ino
            for kind in ("user", "net")
        }
        there = {
            kind: os.fstat(fd).st_ino
            for kind, fd in zip(("user", "net"), attachment.namespaces, strict=True)
        }
    try:
        assert here == there
        assert here["net"] != os.stat("/proc/self/ns/net").st_ino
        assert vmm.find(request.paths) == running.identity
        assert await running.status() == "running"
        await running.kill()
        assert not proc.alive(running.identity)
    finally:
        await running.close()
        await network.detach(lease)
