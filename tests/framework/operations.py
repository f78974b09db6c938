"""Every operation there is, how to do it over a host in memory, and what stages it goes through: found out by doing each once.

Tests that fail every step on purpose are driven by it, so that a new step is covered without a new test; `DEEDS` must have every verb.
"""

import asyncio
import contextlib
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from banger.engine.adjust import Changes
from banger.engine.image_work import ImageWork
from banger.host import faults
from banger.model.errors import BangerError
from banger.model.promotion import Promotion
from banger.model.registration import Registration
from banger.model.spec import Forward, ForwardProtocol, VmSpec
from banger.model.transfer import ImageExport, ImageImport
from tests.framework.fake_world import World

SPEC = VmSpec(disk_bytes=1 << 30, work_bytes=1 << 30)
WITH_FORWARD = replace(SPEC, forwards=(Forward(9090, 90),))
ADJUSTMENT = Changes(
    nat=False, groups=("web", "db"), forwards=(Forward(8080, 80), Forward(0, 53, ForwardProtocol.UDP))
)  # fmt: skip
CHANGES = Changes(name="new", memory_mib=640, work_bytes=2 << 30)


@dataclass(frozen=True)
class Deed:
    """An operation in one of its forms: ``do(bench)`` does it to its end and returns its record. ``welcome``: the VM's state beforehand
    (``none``: there is no VM; ``image``: nor that, but an image that no VM needs).
    """

    name: str
    welcome: str
    do: Callable[["Bench"], Awaitable[object]]

    @property
    def kind(self):
        """The operation's kind."""
        return self.name.partition(" ")[0]


class Bench:
    """An engine with what a deed works on: the VM ``one``, images, files beside them."""

    def __init__(self, world, engine=None):
        self.world = world
        self.engine = engine or world.engine()
        self.images = ImageWork(self.engine)
        self.file = world.directory / "container.tar"
        self.file.touch()

    @property
    def machine(self):
        return next(iter(self.engine.machines()), None)

    async def ended(self, record_or_run):
        """The record once it is over; of one without a live run as the store has it."""
        board = self.engine.context.board
        run = board.live(record_or_run.id)
        record = await asyncio.wait_for(run.wait(), 60) if run else board.get(record_or_run.id)
        await self.quiet()
        return record

    async def quiet(self):
        """Return when nothing works on a VM any more."""
        async with asyncio.timeout(60):
            while any(self.engine.busy(machine) for machine in self.engine.machines()):
                await asyncio.sleep(0)

    async def make(self, *, start=True):
        """vm.create."""
        run = self.engine.create("one", "debian", WITH_FORWARD, start=start, ready_s=None)
        return await self.ended(run)

    async def change(self, changes):
        """vm.set or vm.adjust, whose error is raised and in the record too."""
        with contextlib.suppress(BangerError):
            await self.engine.change(self.machine, changes)
        return await self.ended(self.engine.context.board.newest(1)[0])

    async def promote(self):
        """vm.promote, under a name that is free."""
        wish = Promotion(f"mine-{len(self.engine.context.images.list())}")
        return await self.ended(await self.images.promote(self.machine, wish))

    async def delete_image(self):
        """image.delete, of the newest image or what is left of one; its error is in the record."""
        images = self.engine.context.images
        ref = next(iter(images.half_deleted()), images.list()[-1].id)
        with contextlib.suppress(BangerError):
            await self.images.delete(ref)
        return await self.ended(self.engine.context.board.newest(1)[0])

    async def prepare(self, welcome):
        """Bring the VM to the state in which an operation is ``welcome``, from whatever state it is in; there may be none yet."""
        engine = self.engine
        if welcome in {"none", "image"}:
            for machine in engine.machines():
                await self.ended(engine.delete(machine))
            if welcome == "image" and len(engine.context.images.list()) == 1:
                await self.ended(self.images.register(Registration("idle", base="debian")))
            return
        if self.machine is None:
            await self.make(start=welcome != "stopped")
        state = self.machine.state.value
        if welcome in {"running", "paused"} and state in {"stopped", "failed"}:
            await self.ended(engine.start(self.machine, None))
        if welcome == "running" and state == "paused":
            await self.ended(engine.resume(self.machine))
        if welcome == "stopped" and state in {"running", "paused"}:
            await self.ended(engine.stop(self.machine, None, force=True))
        if welcome == "paused" and state != "paused":
            await self.ended(engine.pause(self.machine))

    async def close(self):
        """Let go, as a daemon does that ends."""
        await self.images.close()
        await self.engine.close()
        self.engine.context.store.close()


def _on_vm(name, welcome, begin):
    async def do(bench):
        return await bench.ended(begin(bench.engine, bench.machine))

    return Deed(name, welcome, do)


def _image(name, begin):
    async def do(bench):
        return await bench.ended(begin(bench))

    return Deed(name, "none", do)


def _broken(engine, machine):
    """A VM at rest of whose run something is left."""
    machine.store.intend(machine.id, "vmm")
    return engine.mend(machine)


def _free(bench, name):
    return f"{name}-{len(bench.engine.context.images.list())}"


DEEDS = (
    Deed("vm.create", "none", lambda bench: bench.make()),
    Deed("vm.create --no-start", "none", lambda bench: bench.make(start=False)),
    _on_vm("vm.start", "stopped", lambda engine, vm: engine.start(vm, None)),
    _on_vm("vm.stop", "running", lambda engine, vm: engine.stop(vm, None, force=False)),
    _on_vm("vm.stop --force", "running", lambda engine, vm: engine.stop(vm, None, force=True)),
    _on_vm("vm.stop of a paused one", "paused", lambda engine, vm: engine.stop(vm, None, force=False)),
    _on_vm("vm.restart", "running", lambda engine, vm: engine.restart(vm, None)),
    _on_vm("vm.restart of a stopped one", "stopped", lambda engine, vm: engine.restart(vm, None)),
    _on_vm("vm.delete", "running", lambda engine, vm: engine.delete(vm)),
    _on_vm("vm.delete of a stopped one", "stopped", lambda engine, vm: engine.delete(vm)),
    Deed("vm.set", "stopped", lambda bench: bench.change(CHANGES)),
    Deed("vm.adjust", "running", lambda bench: bench.change(ADJUSTMENT)),
    Deed("vm.adjust of a stopped one", "stopped", lambda bench: bench.change(ADJUSTMENT)),
    _on_vm("vm.pause", "running", lambda engine, vm: engine.pause(vm)),
    _on_vm("vm.resume", "paused", lambda engine, vm: engine.resume(vm)),
    _on_vm("vm.mend", "running", lambda engine, vm: engine.mend(vm)),
    _on_vm("vm.mend of a stopped one", "stopped", _broken),
    Deed("vm.promote", "stopped", lambda bench: bench.promote()),
    _image("image.build", lambda bench: bench.images.build("debian", name=None, force=False)),
    _image(
        "image.register",
        lambda bench: bench.images.register(Registration(_free(bench, "own"), base="debian", rootfs=bench.file)),
    ),
    _image(
        "image.import",
        lambda bench: bench.images.import_image(ImageImport(bench.file, name=_free(bench, "in")), _free(bench, "in")),
    ),
    _image(
        "image.export",
        lambda bench: bench.images.export_image(ImageExport("debian", bench.file.with_name("out.tar"), replace=True), "debian"),
    ),
    Deed("image.delete", "image", lambda bench: bench.delete_image()),
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """A trace point that a deed passes: the ``turn``-th time (from 0) that it comes by. ``vmm``, ``network``: whether there is one then."""

    name: str
    turn: int
    vmm: bool
    network: bool


async def _once(deed, directory):
    """The trace points and the stages of a deed."""
    bench = Bench(World(directory))
    points = []

    async def note(name):
        turn = sum(point.name == name for point in points)
        points.append(Point(name, turn, bool(bench.world.vmms), bool(bench.world.taps)))

    try:
        async with asyncio.timeout(60):
            await bench.prepare(deed.welcome)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(faults, "point", note)
                record = await deed.do(bench)
            assert record.kind == deed.kind
            assert record.error is None, record.error
            return points, [stage.name for stage in record.stages]
    finally:
        await bench.close()


async def _all(deeds):
    found = {}
    for deed in deeds:
        with tempfile.TemporaryDirectory() as directory:
            found[deed.name] = await _once(deed, Path(directory))
    return found


def passed():
    """Deed's name -> the trace points that it passes, in order."""
    return {name: points for name, (points, _) in asyncio.run(_all(DEEDS)).items()}


def stages():
    """Operation's kind -> the names of its stages, in order. ``vm.restart`` is that of a running VM."""
    plain = [deed for deed in DEEDS if " " not in deed.name]
    return {name: names for name, (_, names) in asyncio.run(_all(plain)).items()}
