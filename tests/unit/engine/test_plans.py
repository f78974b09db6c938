"""What a dry run says: the very steps that are done, in words of what was asked."""

from dataclasses import replace

import pytest
from inline_snapshot import snapshot

from banger.engine.effects import EFFECTS
from banger.engine.plans import CREATE, START
from banger.model.errors import HostLacksError, NotFoundError, RefusedError
from banger.model.spec import Forward, NetworkMode, VmmChoice, VmSpec
from banger.model.state import WaitFor
from tests.framework.stages import CREATE_STAGES
from tests.unit.engine.test_engine import SPEC, finished, make

WISH = VmSpec(
    vcpus=4, memory_mib=1536, disk_bytes=8 << 30, work_bytes=2 << 30, network=NetworkMode.USER, nat=False,
    forwards=(Forward(8080, 80), Forward(0, 22)),
)  # fmt: skip


async def test_the_plan_of_a_create(engine, world):
    before = world.inventory()
    steps = await engine.plan_create("web", "debian", WISH, start=True)
    assert [(step.stage, step.what) for step in steps] == snapshot(
        [
            ("validate", "check image debian and that VMM qemu can run here"),
            ("reserve", "make the directory of VM web"),
            ("disks", "make root disk (8G) and work disk (2G)"),
            ("identity", "write the identity drive"),
            (
                "network",
                "attach to network user (not to the outside), open forwards: 8080 to 80, any to 22",
            ),
            ("vmm", "start VMM qemu with 4 vCPUs and 1.5G"),
            ("boot", "wait until the guest's init runs"),
            ("agent", "wait for the guest's agent"),
            ("services", "wait for the image's services"),
            ("ready", "declare that the VM runs"),
        ]
    )
    assert [step.stage for step in steps] == CREATE_STAGES
    assert {effect for step in steps for effect in step.effects} == set(EFFECTS)
    assert world.inventory() == before
    assert engine.machines() == []
    assert engine.context.board.newest() == []


@pytest.mark.parametrize("steps", [CREATE, START])
async def test_every_step_says_what_it_does(steps):
    assert all(step.describe for step in steps)


@pytest.mark.parametrize(("wait", "left_out"), [("booted", 2), ("agent", 1), ("services", 0)])
async def test_a_plan_goes_as_far_as_the_guest_is_waited_for(engine, wait, left_out):
    stages = ["agent", "services"][2 - left_out :]
    steps = await engine.plan_create("web", "debian", WISH, start=True, wait=WaitFor(wait))
    assert [s.stage for s in steps] == [one for one in CREATE_STAGES if one not in stages]


async def test_a_plan_is_refused_where_the_operation_would_be(engine):
    with pytest.raises(NotFoundError):
        await engine.plan_create("web", "plan9", SPEC, start=True)
    wish = replace(SPEC, vmm=VmmChoice.FIRECRACKER)
    with pytest.raises(HostLacksError, match="firecracker"):
        await engine.plan_create("web", "debian", wish, start=True)
    await make(engine, "web")
    with pytest.raises(RefusedError, match="taken"):
        await engine.plan_create("web", "debian", SPEC, start=True)


async def test_the_plan_of_a_start_is_what_start_does_then(engine):
    await make(engine)
    machine = engine.resolve("one")
    assert await engine.plan_start(machine) == []
    await finished(engine, engine.pause(machine))
    with pytest.raises(RefusedError, match="is paused"):
        await engine.plan_start(machine)
    await finished(engine, engine.stop(machine, None, force=True))
    planned = [step.stage for step in await engine.plan_start(machine)]
    record = await finished(engine, engine.start(machine, None))
    assert [stage.name for stage in record.stages] == planned
