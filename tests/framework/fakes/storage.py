"""Disks that are small text files: they keep every promise of the port, cost nothing, and fail when told to."""

from banger.host import fs
from banger.model.errors import HostLacksError, InvalidInputError, RefusedError
from banger.storage import root as root_disk


class FakeStorage:
    """See `engine.ports.Storage`. ``free_bytes`` is what the fake host has left."""

    def __init__(self, free_bytes=1 << 40):
        self.free_bytes = free_bytes

    async def check_image(self, boot):
        for path in (boot.kernel, boot.initramfs, boot.rootfs, boot.work_seed):
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

    async def create(self, boot, spec, paths, root):
        for name, asked, file in (
            ("disk", spec.disk_bytes, boot.rootfs),
            ("work", spec.work_bytes, boot.work_seed),
        ):
            least = file.stat().st_size
            if asked < least:
                raise InvalidInputError(
                    f"{name} size is too small", hint=f"choose --{name}-size {least >> 20}M or more"
                )
        for path in (paths.overlay, paths.overlay_raw, paths.work):
            if path.exists():
                raise RefusedError(f"{path} is there already")
        if self.free_bytes < 64 << 20:
            raise HostLacksError(
                f"no space for a VM's disks on {paths.state}",
                detail=f"{self.free_bytes} are free",
                hint="banger vm list",
            )
        root_disk.path_of(paths, root).write_text(f"{spec.disk_bytes} {boot.rootfs}\n")
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
        return root_disk.find(paths)

    async def grow_work(self, paths, size_bytes):
        _there(paths.work, f"banger vm delete {paths.state.name}, and create it again")
        if size_bytes < int(paths.work.read_text()):
            raise RefusedError(f"work disk {paths.work} cannot shrink", hint="make a new VM")
        paths.work.write_text(f"{size_bytes}\n")

    async def delete(self, paths):
        for path in (paths.overlay, paths.overlay_raw, paths.work):
            path.unlink(missing_ok=True)


def _there(path, hint):
    if not path.exists():
        raise HostLacksError(f"{path} is missing", hint=hint)
