"""Adapters in memory for tests of the engine: they keep every promise of ``engine.ports`` but touch no host.

`World.inventory()` lists every object that exists "on the host"; an operation that failed must leave it as it was.
"""

import asyncio
import contextlib
import os
import shutil
import socket
from dataclasses import replace

from banger.engine.backends import Backends
from banger.engine.context import Context
from banger.engine.engine import Engine
from banger.engine.machine import Places
from banger.engine.operations import Board
from banger.host import proc
from banger.model.errors import (
    BangerError,
    GuestNotReadyError,
    HostLacksError,
    NotFoundError,
    RefusedError,
)
from banger.model.ids import new_id
from banger.model.image_plan import Difference, ImageDiff, ImagePlan, PlannedStage
from banger.model.lease import Lease, Traffic
from banger.model.machine import (
    BootStack,
    DiskFormat,
    HostKey,
    NetworkAttachment,
    SeedState,
    StorageChoice,
    StorageDriver,
    Timeouts,
    VmmExit,
)
from banger.model.manifest import ImageManifest, Service
from banger.model.process import ProcessIdentity
from banger.model.residue import NetworkSurvey, Stray
from banger.model.spec import ForwardProtocol
from banger.storage import drivers, usage
from banger.storage.disks import DiskStorage
from banger.store.store import Store

IMAGE = ImageManifest(
    id="d" * 12, name="debian", distribution="debian", release="bookworm", architecture="amd64",
    created_at="2026-01-01T00:00:00.000Z", inputs_digest="0" * 64, disk_bytes=1 << 30, kernel_release="6.1",
    cmdline="", files={}, services=(Service("ssh", 22),),
)  # fmt: skip


class FakeRunningVmm:
    vmm, accel, agent = "qemu", "tcg", "serial"
    confinement, warning = "confined", ""

    def __init__(self, world, paths, identity):
        self.world, self.paths, self.identity = world, paths, identity
        self._exit = asyncio.get_running_loop().create_future()
        self.paused = False

    def end(self, reason="crash", detail=""):
        self.world.vmms.pop(self.paths.runtime, None)
        if not self._exit.done():
            self._exit.set_result(VmmExit(reason, None, detail))

    def _answers(self):
        if self._exit.done():
            raise GuestNotReadyError("the VMM is gone", hint="banger vm list")

    async def pause(self):
        self._answers()
        self.paused = True

    async def resume(self):
        self._answers()
        self.paused = False

    async def status(self):
        self._answers()
        return "paused" if self.paused else "running"

    async def power_down(self):
        self.end("guest-shutdown")

    async def kill(self):
        self.end("quit")

    async def wait(self):
        return await asyncio.shield(self._exit)

    async def close(self):
        pass


class FakeVmm:
    name, root_formats, named_tap = "qemu", (DiskFormat.QCOW2, DiskFormat.RAW), False

    def __init__(self, world):
        self.world = world

    async def check(self):
        pass

    async def launch(self, request):
        self.world.may_fail("vmm")
        self.world.launched += 1
        pid = 2**22 + self.world.launched  # above every real one
        vmm = FakeRunningVmm(self.world, request.paths, ProcessIdentity(pid, 1, proc.boot_id()))
        self.world.vmms[request.paths.runtime] = vmm
        request.paths.console_log.write_bytes(self.world.console())
        if self.world.dies_at_boot:
            asyncio.get_running_loop().call_soon(vmm.end, self.world.dies_at_boot)
        return vmm

    async def adopt(self, identity, paths):
        return self.world.vmms.get(paths.runtime)

    async def release(self, paths):
        self.world.groups_left.discard(paths.state.name)

    def find(self, paths):
        found = [one for vm_id, one in self.all(None, None) if vm_id == paths.state.name]
        return found[0] if found else None

    def all(self, vms_dir, sockets_dir):
        running = [(paths.name, vmm.identity) for paths, vmm in self.world.vmms.items()]
        return running + [(vm_id, one) for one, vm_id in self.world.strange_vmms.items()]

    def left(self, vm_ids):
        return frozenset(self.world.groups_left & {*vm_ids, *self.world.deserted})


class FakeBackends(Backends):
    """Their processes are in the world alone."""

    def __init__(self, world):
        super().__init__([FakeVmm(world)])
        self.world = world

    async def end(self, identity):
        self.world.may_fail("end-vmm")
        self.world.strange_vmms.pop(identity, None)
        for vmm in [one for one in self.world.vmms.values() if one.identity == identity]:
            vmm.end("quit")


class FakeStorage:
    def __init__(self, world):
        self.world = world

    async def check_image(self, boot):
        self.world.may_fail("validate")

    wanted_format = None

    async def choose(self, boot, paths, vmm, formats):
        return self.world.storage_choice

    async def create(self, boot, spec, paths, driver):
        paths.overlay.write_bytes(b"qcow2")
        self.world.may_fail("disks")
        paths.work.write_bytes(b"ext4")
        return "qcow2, reflink"

    def root(self, paths):
        return drivers.find_disk(paths)

    async def open_root(self, boot, spec, paths):
        self.world.devices.add(paths.state.name)
        self.world.may_fail("device")
        return drivers.find_disk(paths)

    async def close_root(self, paths):
        self.world.devices.discard(paths.state.name)

    async def tend(self, vms):
        return [self.world.fills[p.state.name] for p in vms if p.state.name in self.world.fills]

    async def usage(self, state_dir, owners):
        return usage.measure(state_dir, owners)

    def flat_bytes(self, boot, paths):
        return 5

    async def flatten(self, boot, spec, paths, target):
        self.world.devices.add(paths.state.name)
        self.world.may_fail("flatten")
        await self.world.may_hang("flatten")
        target.write_bytes(paths.overlay.read_bytes())
        await self.close_root(paths)
        return "copied"

    async def devices(self, vms_dir):
        return frozenset(self.world.devices)

    missing = DiskStorage.missing

    async def sweep(self, vms_dir, running):
        gone = self.world.devices - set(running)
        self.world.devices -= gone
        return [f"device of {name} removed" for name in sorted(gone)]

    async def check(self, boot, spec, paths):
        if not paths.overlay.exists():
            raise BangerError(f"{paths.overlay} is missing")

    async def grow_work(self, paths, size_bytes):
        paths.work.write_bytes(b"ext4" * 2)

    async def delete(self, paths):
        for path in (paths.overlay, paths.work):
            path.unlink(missing_ok=True)


class FakeNetwork:
    def __init__(self, world):
        self.world = world

    async def start(self):
        pass

    def plan_lease(self, vm_id, taken):
        index = next(i for i in range(1000) if i not in {lease.index for lease in taken})
        return Lease(
            vm_id,
            index,
            f"02:00:00:00:{index >> 8:02x}:{index & 255:02x}",
            f"10.0.{index >> 8}.{index & 255}",
            16,
            "10.0.255.2",
            "10.0.255.3",
        )

    async def settle(self, lease, mode):
        return lease, 65520

    async def attach(self, lease, mode, *, named, outward=True, groups=()):
        self.world.taps.add(lease.vm_id)
        self.world.outward[lease.vm_id] = outward
        self.world.groups[lease.vm_id] = tuple(groups)
        self.world.may_fail("network")
        return NetworkAttachment("none" if mode == "none" else self.world.mode, lease)

    def adopted(self, lease):
        assert lease.vm_id in self.world.taps

    async def detach(self, lease):
        self.world.taps.discard(lease.vm_id)

    async def set_outward(self, lease, *, outward):
        if lease.vm_id not in self.world.taps:
            raise HostLacksError(f"VM {lease.vm_id} has no network any more", hint="restart it")
        self.world.may_fail("nat")
        self.world.outward[lease.vm_id] = outward

    async def set_groups(self, lease, groups):
        if lease.vm_id not in self.world.taps:
            raise HostLacksError(f"VM {lease.vm_id} has no network any more", hint="restart it")
        self.world.may_fail("groups")
        self.world.groups[lease.vm_id] = tuple(groups)

    def traffic(self, lease):
        return Traffic(100, 200) if lease.vm_id in self.world.taps else None

    async def dial(self, lease, port, *, protocol=ForwardProtocol.TCP):
        if lease.vm_id not in self.world.taps or protocol is ForwardProtocol.TCP:
            raise ConnectionRefusedError
        if self.world.carries_no_udp:
            raise HostLacksError("the network is of an older banger", hint="stop all VMs")
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    async def survey(self, leases):
        ids = {lease.vm_id for lease in leases()}
        strays = [Stray(name) for name in sorted(self.world.taps - ids)]
        return NetworkSurvey(
            frozenset(self.world.taps & ids), (*strays, *sorted(self.world.strays, key=str))
        )

    async def end_stray(self, stray, leases):
        self.world.strays.discard(stray)
        if stray.name not in {lease.vm_id for lease in leases()}:
            self.world.taps.discard(stray.name)

    async def describe(self):
        return {"mode": "user", "detail": "fake"}

    async def stop(self, *, if_unused=True):
        pass

    async def close(self):
        pass


class FakeRelays:
    def __init__(self, world):
        self.world = world
        self._next = 40000

    def free_port(self, protocol, host_port=0):
        shown = host_port if protocol == "tcp" else f"{host_port}/{protocol}"
        if shown in self.world.ports or shown in self.world.foreign_ports:
            raise RefusedError(f"port {shown} of 127.0.0.1 is taken")
        if host_port == 0:
            self._next += 1
        return host_port or self._next

    async def add(self, host_port, dial, *, protocol=ForwardProtocol.TCP):
        port = self.free_port(protocol, host_port)
        self.world.may_fail(f"listen on {port}")
        self.world.ports.add(port if protocol == "tcp" else f"{port}/{protocol}")
        return port

    def open(self):
        def key(shown):
            port, _, protocol = str(shown).partition("/")
            return ForwardProtocol(protocol or "tcp"), int(port)

        return frozenset(map(key, self.world.ports))

    async def remove(self, host_port, *, protocol=ForwardProtocol.TCP):
        self.world.ports.discard(host_port if protocol == "tcp" else f"{host_port}/{protocol}")

    async def close(self):
        self.world.ports.clear()


class FakeImages:
    def __init__(self, world, directory):
        self.world, self.directory = world, directory
        self.images, self._held = world.images, False

    def list(self):
        return [*self.images.values()]

    def get(self, ref):
        for image in self.images.values():
            if ref in (image.name, image.id):
                return image
        for one in self.world.unusable:
            if ref in (one.name, one.id):
                raise one.to_error()
        raise NotFoundError(f"no image {ref!r}", hint="banger image build debian")

    def check_recipe(self, recipe, *, name):
        if recipe != "debian":
            raise NotFoundError(f"no recipe {recipe!r}")

    def boot_stack(self, image_id):
        base = self.directory
        if image_id not in self.images:
            raise NotFoundError(f"image {image_id} is gone or damaged", hint="banger image build debian")  # fmt: skip
        return BootStack(base / "k", base / "i", base / "r", base / "w", "", self.images[image_id])

    async def build(self, recipe, *, name, force, progress):
        for stage in ("resolve", "packages", "rootfs"):
            await progress(stage, "")
            await asyncio.sleep(0)
            self.world.may_fail(f"build-{stage}")
            await self.world.may_hang(f"build-{stage}")
        return IMAGE

    async def check_registration(self, wish):
        if wish.base is not None:
            self.get(wish.base)
        if any(image.name == wish.name for image in self.images.values()) and not wish.replace:
            raise RefusedError(f"image name {wish.name!r} is taken", hint="add --replace")
        for path in wish.paths.values():
            if not path.exists():
                raise NotFoundError(f"{path} does not exist")

    async def check_import(self, wish):
        if wish.kernel_from is not None:
            self.get(wish.kernel_from)
        if not wish.path.exists():
            raise NotFoundError(f"{wish.path} does not exist", hint="ls")
        return wish.name or wish.default_name

    async def import_image(self, wish, *, progress):
        await progress("open", "")
        made = replace(IMAGE, id=new_id(), name=await self.check_import(wish))
        self.images[made.id] = made
        return made

    async def check_export(self, wish):
        manifest = self.get(wish.image)
        if not wish.path.parent.is_dir():
            raise NotFoundError(f"there is no directory {wish.path.parent}", hint="mkdir")
        return manifest

    async def export_image(self, wish, *, progress):
        await progress("files", "")
        return await self.check_export(wish)

    async def register(self, wish, *, progress):
        for stage in ("validate", "kernel", "rootfs"):
            await progress(stage, "")
            self.world.may_fail(f"register-{stage}")
            await self.world.may_hang(f"register-{stage}")
        made = replace(IMAGE, id=new_id(), name=wish.name, services=wish.services or IMAGE.services)
        self.images[made.id] = made
        return made

    async def check_promotion(self, wish):
        if any(image.name == wish.name for image in self.images.values()) and not wish.replace:
            raise RefusedError(f"image name {wish.name!r} is taken", hint="add --replace")

    async def promote(self, wish, source, *, progress):
        await self.check_promotion(wish)
        work = self.directory / "images" / f".build-{source.vm_id}"
        work.mkdir(parents=True)
        try:
            await progress("flatten", "")
            await source.copy_root(work / "rootfs.img")
            for stage in ("clean", "seal"):
                await progress(stage, "")
                self.world.may_fail(f"promote-{stage}")
        finally:
            shutil.rmtree(work, ignore_errors=True)
        made = replace(IMAGE, id=new_id(), name=wish.name, parent=source.image_id)
        self.images[made.id] = made
        return made

    async def adopt(self, name, directory, *, progress):
        await progress("files", "")
        await self.world.may_hang("adopt")
        made = replace(IMAGE, id=new_id(), name=name)
        self.images[made.id] = made
        return made

    def seed_word(self, manifest):
        return "current" if self.world.seed_current else "older"

    async def seed(self, image_id):
        self.world.may_fail("seed")
        return SeedState(self.world.seed_current, self.world.seed_detail)

    async def complete_home(self, disk, image_id):
        assert disk.exists()
        self.world.may_fail("complete-home")
        self.world.completed.append(disk)
        return ".ssh"

    async def refresh_seed(self, image_id):
        self.world.may_fail("refresh-seed")
        await self.world.may_hang("refresh-seed")
        self.world.seed_current = True
        return "added .ssh"

    async def keep_up(self):
        return []

    def unusable(self):
        return self.world.unusable

    async def sweep(self):
        for path, _ in self.leftovers():
            shutil.rmtree(path)

    def plan(self, recipe, *, name):
        self.check_recipe(recipe, name=name)
        stage = PlannedStage("packages", "1 package", (("mmdebstrap", "--variant=minbase"),))
        return ImagePlan(
            name or recipe, recipe, "debian bookworm amd64", "0" * 64, "", ("http://mirror.test",), ("bash",), ("dev",),
            {"/etc/motd": "1" * 64}, {"hooks[0]": "2" * 64}, ("ssh 22",), 8 << 30, 1 << 30, 3, 4096, (stage,),
        )  # fmt: skip

    async def sbom(self, image_id):
        return b'{"spdxVersion": "SPDX-2.3"}'

    async def diff(self, before, after):
        packages = (Difference("changed", "bash", "1", "2"),)
        files = (Difference("added", "/etc/motd", "", "file 0644 0:0 6 B"),)
        return ImageDiff(before, after, *((), ()) if before == after else (packages, files))

    def downloads(self):
        path = self.directory / "cache"
        return (path, 8192) if path.exists() else None

    def clear_downloads(self):
        (self.directory / "cache").rmdir()

    def leftovers(self):
        found = () if self._held else self.directory.glob("images/*")
        return [(path, 4096) for path in sorted(found)]

    def half_deleted(self):
        return [path.name for path in self.directory.glob("images/[!.]*")]

    async def delete(self, image_id, *, unused, progress):
        rest = self.directory / "images" / image_id
        self._held = True
        try:
            await progress("manifest", "")
            unused()
            self.world.unusable = [one for one in self.world.unusable if one.id != image_id]
            self.images.pop(image_id, None)
            rest.mkdir(parents=True, exist_ok=True)
            await progress("files", "")
            self.world.may_fail("delete-files")
            await self.world.may_hang("delete-files")
            rest.rmdir()
        finally:
            self._held = False

    def allocated_bytes(self, image_id):
        return 4096


class FakeIdentity:
    def __init__(self, world):
        self.world = world

    async def write(self, request, paths):
        paths.identity.write_bytes(b"tar")
        self.world.identities.append(request)
        self.world.may_fail("identity")
        self.world.known_hosts[request.vm_id] = request.name
        return HostKey("ssh-ed25519 AAAA")

    def known_hosts(self):
        return frozenset(self.world.known_hosts)

    async def forget(self, vm_id, paths):
        paths.identity.unlink(missing_ok=True)
        self.world.known_hosts.pop(vm_id, None)


class FakeGuest:
    def __init__(self, world, paths):
        self.world, self.paths = world, paths

    async def wait_connected(self, timeout_s):
        self.world.booting += 1
        self.world.most_at_once = max(self.world.most_at_once, self.world.booting)
        try:
            await self.world.may_hang("agent")
            self.world.may_fail("agent")
            await asyncio.sleep(0)
        finally:
            self.world.booting -= 1

    async def healthz(self, timeout_s=2.0):
        if not self.world.agent_answers:
            raise GuestNotReadyError("the agent did not answer")
        return {
            "status": "ok",
            "version": "1",
            "boot_id": "x",
            "uptime_s": 1.0,
            "services": [{"name": "ssh", "port": 22, "ready": self.world.serves}],
        }

    async def wait_services(self, timeout_s):
        await self.world.may_hang("services")
        self.world.may_fail("services")
        return await self.healthz()

    async def stats(self, timeout_s=2.0):
        await self.healthz()
        return {"uptime_s": 1.0, "load_1m": 0.5}

    async def ports(self, timeout_s=2.0):
        return [{"protocol": "tcp", "address": "0.0.0.0", "port": 22, "process": "sshd"}]

    async def get_files(self, path):
        await self.healthz()
        yield bytes(10240)

    async def put_files(self, path, tar):
        await self.healthz()
        async for _ in tar:
            pass

    async def set_clock(self, epoch_ms, timeout_s=2.0):
        await self.healthz()
        self.world.clocks_ms.append(epoch_ms)

    async def shutdown(self, *, reboot=False):
        if not self.world.agent_answers:
            raise GuestNotReadyError("the agent did not answer")
        vmm = self.world.vmms.get(self.paths.runtime)
        if vmm is not None and self.world.obeys:
            vmm.end("guest-shutdown")

    async def close(self):
        pass


class World:
    """A host in memory, and the switches that make it fail."""

    def __init__(self, directory):
        self.directory = directory
        self.vmms, self.taps, self.ports, self.known_hosts = {}, set(), set(), {}
        self.clocks_ms, self.identities = [], []
        self.launched = self.booting = self.most_at_once = 0
        self.foreign_ports, self.outward, self.groups = set(), {}, {}
        self.mode, self.carries_no_udp = "user", False
        self.devices, self.fills = set(), {}
        self.strange_vmms, self.strays = {}, set()
        self.groups_left, self.deserted = set(), set()  # VMs with a cgroup; nobody uses it
        self.storage_choice = StorageChoice(StorageDriver.QCOW2, "told to")
        self.images = {IMAGE.id: IMAGE}
        self.fail_at, self.hang_at = set(), set()
        self.seed_current, self.seed_detail, self.completed, self.unusable = True, "", [], []
        self.hanging = asyncio.Event()
        self.boots = self.agent_answers = self.obeys = self.serves = True
        self.timers_lost = 0  # so many boots from now on hang
        self.dies_at_boot = ""
        self.places = Places(directory / "state", directory / "run")
        (directory / "state" / "vms").mkdir(parents=True, exist_ok=True)

    def may_fail(self, where):
        if where in self.fail_at:
            raise BangerError(f"told to fail at {where}")

    async def may_hang(self, where):
        if where in self.hang_at:
            self.hanging.set()
            await asyncio.Event().wait()

    def open_store(self):
        return Store(self.directory / "banger.db")

    def context(self, **changes):
        store = self.open_store()
        parts = {
            "store": store, "board": Board(store), "vmms": FakeBackends(self), "storage": FakeStorage(self), "network": FakeNetwork(self),
            "relays": FakeRelays(self), "images": FakeImages(self, self.directory), "identity": FakeIdentity(self),
            "guests": lambda paths, _agent: FakeGuest(self, paths),
            "console_tail": lambda paths: paths.console_log.read_text() if paths.console_log.exists() else "",
            "places": self.places, "boot_slots": asyncio.Semaphore(2), "questions": asyncio.Semaphore(2), "timeouts": Timeouts(ready_s=5, shutdown_s=0.3, agent_call_s=0.2),
        }  # fmt: skip
        return Context(**{**parts, **changes})

    def engine(self, **changes):
        return Engine(self.context(**changes))

    def lose_network(self):
        """Its helper, holder or uplink dies: who is in it has no place there any more, who comes later gets a new one."""
        for things in (self.taps, self.outward, self.groups):
            things.clear()

    def console(self):
        """What the next guest prints."""
        if self.timers_lost:
            self.timers_lost -= 1
            return b"[    0.192915] APIC frequency too slow, disabling apic timer\n"
        return b"banger: booted\nhello from the guest\n" if self.boots else b"stuck\n"

    def inventory(self):
        """Every object on this host but the database."""
        files = set()
        for root in (self.places.state_dir, self.places.runtime_dir):
            for directory, _, names in os.walk(root):
                with contextlib.suppress(ValueError):
                    files |= {os.path.join(directory, name) for name in names}
                files |= {directory} if directory.count("/") > str(root).count("/") + 1 else set()
        return {
            "files": files, "vmms": set(self.vmms) | set(self.strange_vmms), "groups": set(self.groups_left), "strays": set(self.strays), "taps": set(self.taps),
            "devices": set(self.devices), "ports": set(self.ports), "known_hosts": set(self.known_hosts),
        }  # fmt: skip


async def pair():
    """Two connected non-blocking sockets."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs
