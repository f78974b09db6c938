"""Disks that are small text files: they keep every promise of the port, cost nothing, and fail when told to."""

from banger.host import fs
from banger.model.errors import HostLacksError, InvalidInputError, RefusedError
from banger.model.machine import RootDisk, StorageChoice, StorageDriver
from banger.storage import drivers, usage
from banger.storage.disks import DiskStorage


class FakeStorage:
    """See `engine.ports.Storage`. ``free_bytes`` is what the fake host has left."""

    def __init__(self, free_bytes=1 << 40):
        self.free_bytes = free_bytes
        self.opened = set()

    async def check_image(self, boot):
        for path in (boot.kernel, boot.initramfs, boot.rootfs):
            entry = boot.manifest.files.get(path.name)
            _there(path, f"banger image build {boot.manifest.name} --force")
            if entry and path.stat().st_size != entry.size_bytes:
                raise HostLacksError(
                    f"{path} has the wrong size",
                    hint=f"banger image build {boot.manifest.name} --force",
                )
        for path in (boot.kernel, boot.initramfs):
            entry = boot.manifest.files.get(path.name)
            if entry and fs.sparse_digest(path) != entry.digest:
                raise HostLacksError(
                    f"{path} was replaced",
                    hint=f"banger image build {boot.manifest.name} --force",
                )

    wanted_format = None

    async def choose(self, boot, paths, vmm, formats):
        raw = StorageDriver.COPY
        driver = StorageDriver.QCOW2 if formats[0] is StorageDriver.QCOW2.disk_format else raw
        return StorageChoice(driver, "fake")

    async def create(self, boot, spec, paths, driver):
        for name, asked, file in (
            ("disk", spec.disk_bytes, boot.rootfs),
            ("work", spec.work_bytes, boot.work_seed),
        ):
            least = file.stat().st_size
            if asked < least:
                raise InvalidInputError(
                    f"{name} size is too small", hint=f"choose --{name}-size {least >> 20}M or more"
                )
        for path in (*drivers.files_of_all(paths), paths.work):
            if path.exists():
                raise RefusedError(f"{path} is there already")
        if self.free_bytes < 64 << 20:
            raise HostLacksError(
                f"no space for a VM's disks on {paths.state}",
                detail=f"{self.free_bytes} are free",
                hint="banger vm list",
            )
        drivers.file_of(paths, driver).write_text(f"{spec.disk_bytes} {boot.rootfs}\n")
        paths.work.write_text(f"{spec.work_bytes}\n")
        return "fake"

    async def check(self, boot, spec, paths):
        hint = f"banger vm delete {paths.state.name}, and create it again"
        disk = self.root(paths)
        overlay = disk.path if disk else paths.overlay
        for path in (overlay, paths.work):
            _there(path, hint)
        if overlay.read_text() != f"{spec.disk_bytes} {boot.rootfs}\n":
            raise HostLacksError(f"{overlay} is damaged", hint=hint)
        if int(paths.work.read_text() or 0) < spec.work_bytes:
            raise HostLacksError(f"{paths.work} has the wrong size", hint=hint)

    def root(self, paths):
        return drivers.find_disk(paths)

    async def open_root(self, boot, spec, paths):
        disk = self.root(paths)
        if disk is None:
            raise HostLacksError(f"{paths.overlay} is missing", hint="banger vm delete")
        self.opened.add(paths.state.name)
        return RootDisk(disk.path, disk.format)

    async def close_root(self, paths):
        self.opened.discard(paths.state.name)

    def flat_bytes(self, boot, paths):
        return 0

    async def flatten(self, boot, spec, paths, target):
        disk = self.root(paths)
        if disk is None:
            raise HostLacksError(f"{paths.overlay} is missing", hint="banger vm delete")
        with target.open("xb") as file:
            file.truncate(spec.disk_bytes)
        return "fake"

    async def tend(self, vms):
        return []

    async def usage(self, state_dir, owners):
        return usage.measure(state_dir, owners)

    async def devices(self, vms_dir):
        return frozenset(self.opened)

    missing = DiskStorage.missing

    async def sweep(self, vms_dir, running):
        gone = self.opened - set(running)
        self.opened -= gone
        return [f"{name} removed" for name in sorted(gone)]

    async def grow_work(self, paths, size_bytes):
        _there(paths.work, f"banger vm delete {paths.state.name}, and create it again")
        if size_bytes < int(paths.work.read_text()):
            raise RefusedError(f"work disk {paths.work} cannot shrink", hint="make a new VM")
        paths.work.write_text(f"{size_bytes}\n")

    async def delete(self, paths):
        for path in (*drivers.files_of_all(paths), paths.work):
            path.unlink(missing_ok=True)


def _there(path, hint):
    if not path.exists():
        raise HostLacksError(f"{path} is missing", hint=hint)
