"""What VMs and images have to do with each other: seeds renewed behind a create, promotion, deletion, the bundle's images."""

import asyncio
from types import SimpleNamespace

import pytest

from banger.daemon import catalogue
from banger.engine.audit import Audit
from banger.engine.image_work import ImageWork
from banger.engine.reconcile import reconcile
from banger.host import faults
from banger.model.errors import BangerError, HostLacksError, NotFoundError, RefusedError
from banger.model.manifest import Unusable
from banger.model.promotion import Promotion
from banger.model.residue import Remedy
from banger.model.state import OperationState, VmState
from tests.unit.engine.test_engine import SPEC, finished, make


@pytest.fixture
async def work(engine):
    work = ImageWork(engine)
    work.begin_healing()
    yield work
    await work.close()
    faults.load("")


async def kinds(engine, wanted, count=1):
    """Wait until so many operations of this kind are over; their records, newest first."""
    async with asyncio.timeout(10):
        while True:
            found = [op for op in engine.context.board.newest(50) if op.kind == wanted and op.state.final]  # fmt: skip
            if len(found) >= count:
                return found
            await asyncio.sleep(0.01)


def disks(record):
    return next(stage.detail for stage in record.stages if stage.name == "disks")


async def test_a_current_seed_is_cloned_and_that_is_all(engine, world, work):
    record = await make(engine)
    assert world.completed == []
    assert "older" not in disks(record)
    assert [op.kind for op in engine.context.board.newest(9)] == ["vm.create"]


async def test_the_first_vm_takes_the_slow_path_and_the_next_the_fast_one(engine, world, work):
    world.seed_current = False
    record = await make(engine)
    assert record.state is OperationState.SUCCEEDED
    assert world.completed == [engine.resolve("one").paths.work]
    assert "work seed of an older banger (added .ssh)" in disks(record)
    (renewed,) = await kinds(engine, "image.refresh")
    assert renewed.state is OperationState.SUCCEEDED
    assert renewed.stages[0].detail == "added .ssh"
    await make(engine, "two")
    assert len(world.completed) == 1
    assert len(await kinds(engine, "image.refresh")) == 1


async def test_a_daemon_that_ends_while_a_seed_is_renewed_says_so(engine, world, work):
    world.seed_current, world.hang_at = False, {"refresh-seed"}
    await make(engine)
    await asyncio.wait_for(world.hanging.wait(), 30)
    await work.close()
    (record,) = await kinds(engine, "image.refresh")
    assert record.state is OperationState.CANCELLED


async def test_several_vms_at_once_have_their_seed_renewed_once(engine, world, work):
    world.seed_current, world.hang_at = False, {"refresh-seed"}
    for name in ("one", "two", "three"):
        assert (await make(engine, name)).state is OperationState.SUCCEEDED
    assert len(world.completed) == 3  # nobody waits for the renewal
    await asyncio.wait_for(world.hanging.wait(), 30)
    assert [op.kind for op in engine.context.board.newest(9)].count("image.refresh") == 1


async def test_a_seed_that_cannot_be_renewed_is_tried_again_with_the_next_vm(engine, world, work):
    world.seed_current, world.fail_at = False, {"refresh-seed"}
    await make(engine)
    (failed,) = await kinds(engine, "image.refresh")
    assert failed.state is OperationState.FAILED
    world.fail_at = set()
    await make(engine, "two")
    assert len(world.completed) == 2
    assert (await kinds(engine, "image.refresh", 2))[0].state is OperationState.SUCCEEDED


@pytest.mark.parametrize("where", ["seed", "complete-home"])
async def test_a_seed_that_cannot_be_used_fails_the_create_and_leaves_nothing(engine, world, where):
    before = world.inventory()
    world.seed_current, world.fail_at = False, {where}
    assert (await make(engine)).state is OperationState.FAILED
    assert world.inventory() == before
    assert engine.context.stale_seeds.empty()


async def test_a_seed_that_was_made_again_is_told(engine, world):
    world.seed_detail = "work seed made again, it was missing"
    assert "made again, it was missing" in disks(await make(engine))


async def promote(work, engine, name="one", image="mine", **wish):
    return await finished(engine, await work.promote(engine.resolve(name), Promotion(image, **wish)))  # fmt: skip


async def test_a_promoted_vm_stays_at_rest_and_starts_again(engine, world, work):
    await make(engine, start=False)
    before = world.inventory()
    record = await promote(work, engine)
    assert record.state is OperationState.SUCCEEDED, record.error
    assert [s.name for s in record.stages] == ["check", "flatten", "clean", "seal", "place"]
    machine = engine.resolve("one")
    assert machine.state is VmState.STOPPED
    assert {**world.inventory(), "files": 0} == {**before, "files": 0}
    assert engine.context.images.get("mine").parent == "d" * 12
    assert (await finished(engine, engine.start(machine, None))).state is OperationState.SUCCEEDED
    assert engine.context.store.ledger() != []
    with pytest.raises(RefusedError, match="is running") as raised:
        await work.promote(machine, Promotion("again"))
    assert raised.value.hint == "banger vm stop one"


async def test_a_start_waits_for_a_promotion_and_a_delete_ends_it(engine, world, work):
    await make(engine, start=False)
    machine = engine.resolve("one")
    world.hang_at = {"flatten"}
    running = await work.promote(machine, Promotion("mine"))
    await asyncio.wait_for(world.hanging.wait(), 30)
    with pytest.raises(RefusedError, match="operation in hand"):
        await work.promote(machine, Promotion("other"))
    starting = engine.start(machine, None)
    await asyncio.sleep(0.05)
    assert engine.context.board.get(starting.id).state is OperationState.PENDING
    deleting = engine.delete(machine)
    assert (await finished(engine, deleting)).state is OperationState.SUCCEEDED
    assert engine.context.board.get(running.id).state is OperationState.CANCELLED
    assert world.devices == set()
    assert not list(world.directory.glob("images/.build-*"))
    with pytest.raises(NotFoundError):
        engine.context.images.get("mine")


async def test_two_promotions_at_once_run_one_after_another(engine, world, work):
    await make(engine, "one", start=False)
    await make(engine, "two", start=False)
    begun = [await work.promote(engine.resolve(vm), Promotion(image)) for vm, image in (("one", "a"), ("two", "b"))]  # fmt: skip
    for record in begun:
        assert (await finished(engine, record)).state is OperationState.SUCCEEDED
    same = [await work.promote(engine.resolve(vm), Promotion("c")) for vm in ("one", "two")]
    states = {(await finished(engine, record)).state for record in same}
    assert states == {OperationState.SUCCEEDED, OperationState.FAILED}
    assert [image.name for image in engine.context.images.list()].count("c") == 1


async def test_a_device_that_a_killed_promotion_left_open_is_closed_at_start_up(
    engine, world, work
):
    await make(engine, start=False)
    world.hang_at = {"flatten"}
    await work.promote(engine.resolve("one"), Promotion("mine"))
    await asyncio.wait_for(world.hanging.wait(), 30)
    assert world.devices
    again = world.engine()
    await reconcile(again)
    assert world.devices == set()
    assert again.resolve("one").state is VmState.STOPPED
    await again.close()
    again.context.store.close()


async def test_an_image_is_not_deleted_while_a_create_of_it_is_queued(engine, world, work):
    world.hang_at = {"agent"}
    run = engine.create("one", "debian", SPEC, start=True, ready_s=None)
    with pytest.raises(RefusedError, match="is used by 1 VM"):
        await work.delete("debian")
    world.hang_at = set()
    run.cancel()
    await run.wait()


async def test_an_image_that_is_deleted_first_refuses_the_create(engine, world, work):
    await work.delete("debian")
    with pytest.raises(NotFoundError):
        engine.create("one", "debian", SPEC, start=True, ready_s=None)
    assert engine.machines() == []


async def test_an_image_that_cannot_be_used_can_be_deleted_all_the_same(world, work):
    world.unusable = [Unusable("e" * 12, "", "damaged", "delete it")]
    assert (await work.delete("e" * 12)).state is OperationState.SUCCEEDED
    assert world.unusable == []
    with pytest.raises(NotFoundError):
        await work.delete("e" * 12)


async def test_a_deletion_that_failed_half_way_is_finished_by_the_command_that_it_told(
    engine, world, work
):
    world.fail_at = {"delete-files"}
    with pytest.raises(BangerError, match="told to fail"):
        await work.delete("debian")
    with pytest.raises(NotFoundError):
        await work.delete("debian")  # it is none any more
    with pytest.raises(NotFoundError):
        await work.delete(".build-1")
    world.fail_at = set()
    record = await work.delete("d" * 12)
    assert (record.state, record.target, record.target_name) == (OperationState.SUCCEEDED, "d" * 12, "d" * 12)  # fmt: skip
    assert engine.context.images.half_deleted() == []
    with pytest.raises(NotFoundError):
        await work.delete("d" * 12)


async def test_an_image_that_goes_is_no_residue_and_a_daemon_that_ends_leaves_a_rest(
    engine, world, work
):
    world.hang_at = {"delete-files"}
    task = asyncio.create_task(work.delete("debian"))
    await asyncio.wait_for(world.hanging.wait(), 30)
    assert await Audit(engine).look() == []
    task.cancel()
    await asyncio.wait({task})
    (record,) = await kinds(engine, "image.delete")
    assert record.state is OperationState.CANCELLED
    (finding,) = await Audit(engine).look()
    assert (finding.kind, finding.remedy) == ("build", Remedy.SWEEP)
    await engine.context.images.sweep()
    assert await Audit(engine).look() == []


# At the daemon's start


def daemon(engine, work, **config):
    service = SimpleNamespace(context=engine.context, image_work=work, warnings=[])
    return service, SimpleNamespace(**{"bundle_dir": None, "default_image": "debian", **config})


async def test_a_default_image_that_is_there_is_not_spoken_of(engine, work):
    service, config = daemon(engine, work)
    assert await catalogue.default_trouble(service, config.default_image) == ""


async def test_a_default_image_that_is_not_there_is_told_with_what_to_do(engine, work):
    service, _ = daemon(engine, work)
    assert "set default_image to one of: debian" in await catalogue.default_trouble(service, "mine")
    engine.context.images.images["e" * 12] = engine.context.images.images.pop("d" * 12)
    images = engine.context.images
    images.images = {k: SimpleNamespace(id=k, name="other") for k in images.images}
    assert "banger image build debian" in await catalogue.default_trouble(service, "debian")
    images.images = {}
    assert await catalogue.default_trouble(service, "debian") == ""  # a new host


async def test_images_that_cannot_be_used_are_warned_of(engine, world, work):
    service, _ = daemon(engine, work)
    world.unusable = [Unusable("e" * 12, "old", "too old", "banger image build old --force")]
    await catalogue.keep_up(service)
    assert service.warnings == ["image old cannot be used: too old; banger image build old --force"]
    assert isinstance(world.unusable[0].to_error(), HostLacksError)


async def test_images_of_the_bundle_are_taken_in_if_their_names_are_free(
    engine, world, work, monkeypatch
):
    found = [SimpleNamespace(name=name, directory=world.directory) for name in ("debian", "mine")]
    monkeypatch.setattr(catalogue, "prebuilt", lambda root, warn: found)
    world.hang_at = {"adopt"}
    service, config = daemon(engine, work, default_image="mine", bundle_dir=world.directory)
    await catalogue.take_in_prebuilt(service, config)
    assert service.warnings == []  # it is coming
    await asyncio.wait_for(world.hanging.wait(), 30)
    assert work.coming("mine") is not None
    assert work.coming("debian") is None
    world.hang_at = set()
    run = work.coming("mine")
    run.cancel()
    await run.wait()
    assert work.coming("mine") is None
    await catalogue.take_in_prebuilt(service, config)
    await asyncio.wait_for(work.coming("mine").wait(), 30)
    assert engine.context.images.get("mine")
