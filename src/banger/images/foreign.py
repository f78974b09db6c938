"""A root file system that banger did not build, made a guest's: out of an ext4, a qcow2, a tar, an OCI layout or a ``docker save`` archive.

::

    ext4, qcow2, disk ──> tar ──┐
    tar ────────────────────────┼─> names of all layers ──> what is missing, as one more layer ──> tree ──> rootfs.img
    OCI layout, docker save ────┘   (`root_tree`)            (`inject`)                              └─> /root ──> work-seed.img

Nothing of the image is run, and nothing of it is unpacked before it is known what will lie where.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from banger.host import fs
from banger.host.threads import in_thread, stoppable
from banger.images.boxes import DirectoryBox, SourceKind, TarBox, quick_kind, spool
from banger.images.build import ROOT_JOURNAL_MIB
from banger.images.dump import dump_tar, raw_root
from banger.images.elf import read_elf
from banger.images.ext4 import EPOCH_S, make_ext4, read_file, resolve, unpack
from banger.images.flatten import (
    Source,
    from_box,
    from_file,
    measure,
    read_contents,
    scan,
    write_tar,
)
from banger.images.guest_python import take_python
from banger.images.home import JOURNAL_MIB, complete
from banger.images.inject import additions, look_at
from banger.images.layers import MAX_ROOT_BYTES, Budget
from banger.images.oci import Box, LayerFile, Picked, Run, pick_docker, pick_oci
from banger.images.plain import Counted
from banger.images.root_facts import AGENT
from banger.images.root_tree import RootTree
from banger.images.sandbox import check_sandbox, remove_mapped
from banger.model.errors import HostLacksError, InvalidInputError
from banger.model.manifest import ImageManifest, Service
from banger.model.units import GIB, MIB, format_size

Progress = Callable[[str, str], Awaitable[None] | None]
ROOTFS, SEED = "rootfs.img", "work-seed.img"
BUSYBOX: Final = ("/usr/bin/busybox", "/bin/busybox")
_LEAST_DISK_BYTES: Final = 4 * GIB
_INODE_BYTES: Final = 16384  # mke2fs makes one of so many
_SEED_BYTES: Final = GIB
_EXCLUDED: Final = ("./dev/*", "./proc/*", "./sys/*", "./.dockerenv")


@dataclass(frozen=True, slots=True)
class Base:
    """The image whose boot stack goes with the root: its busybox, its kernel's modules and, at need, its Python go into it."""

    manifest: ImageManifest
    directory: Path

    @property
    def rootfs(self) -> Path:
        """Its root file system."""
        return self.directory / ROOTFS


@dataclass(slots=True)
class ForeignRoot:
    """One run in ``work``, the image to be; what is needed for a while lies in ``scratch``."""

    path: Path
    work: Path
    scratch: Path
    base: Base | None
    progress: Progress
    ref: str | None = None
    start_command: bool = False
    asked_services: tuple[Service, ...] | None = None
    boot: Path | None = None
    services: tuple[Service, ...] = ()
    _run: Run = field(default_factory=Run)
    _tree: RootTree = field(default_factory=RootTree)
    _sources: list[Source] = field(default_factory=list)
    _budget: Budget = field(default_factory=Budget)
    _contents: dict[tuple[int, int], bytes] = field(default_factory=dict)

    async def open(self, archive: Path | None = None) -> None:
        """Find the layers and put them over one another; ``boot`` is then the archive with the boot stack, if one came along."""
        await self._say("open", self.path.name)
        await check_sandbox()
        picked = await self._pick(await in_thread(quick_kind, self.path, "image"), archive)
        self._run = picked.run
        for number, source in enumerate(self._sources):
            await self._say("layers", f"{number + 1} of {len(self._sources)}")
            await self._scan(number, source)
        left_out = str(self._budget.left_out)
        await self._say("layers", f"{len(self._sources)}{', ' + left_out if left_out else ''}")

    async def make(self, *, seed: bool) -> None:
        """Write ``rootfs.img`` and, with ``seed``, ``work-seed.img``."""
        await self._complete()
        size_bytes, names = await in_thread(measure, self._tree)
        disk_bytes = _disk_bytes(size_bytes, names)
        self._check_space(size_bytes)
        await self._say("rootfs", f"{names} names, {format_size(size_bytes)}")
        clean, tree = self.scratch / "clean.tar", self.scratch / "tree"
        await stoppable(write_tar, self._tree, self._sources, clean)
        await in_thread(tree.mkdir)
        await self._say("rootfs", "unpack")
        await unpack(clean, tree, exclude=_EXCLUDED)
        await in_thread(clean.unlink)
        await self._say("rootfs", f"{format_size(disk_bytes)}, ext4, {names} names")
        await make_ext4(
            tree, self.work / ROOTFS, disk_bytes, "banger-root", epoch_s=EPOCH_S, journal_mib=ROOT_JOURNAL_MIB
        )  # fmt: skip
        if seed:
            await self._say("seed", f"{format_size(_SEED_BYTES)}, out of /root")
            await make_ext4(
                tree / "root", self.work / SEED, _SEED_BYTES, "banger-work", epoch_s=EPOCH_S, journal_mib=JOURNAL_MIB
            )  # fmt: skip
            await complete(self.work / SEED)
        await remove_mapped(tree)

    async def _say(self, stage: str, detail: str) -> None:
        outcome = self.progress(stage, detail)
        if outcome is not None:
            await outcome

    async def _scan(self, number: int, source: Source) -> None:
        await stoppable(scan, source, number, self._tree, self._contents, self._budget)

    async def _pick(self, kind: SourceKind, archive: Path | None) -> Picked:
        box: Box
        if kind in {"ext4", "qcow2", "disk"}:
            root = await raw_root(self.path, kind, self.scratch)
            tar = self.scratch / "root.tar"
            await dump_tar(root, {"/": "."}, tar, self.scratch)
            if root != self.path:
                await in_thread(root.unlink)
            self._sources = [from_file(tar, f"the file system of {self.path}")]
            return Picked([], Run())
        if kind == "oci" and self.path.is_dir():
            box = DirectoryBox(self.path)
        else:
            if archive is None:
                archive = await stoppable(spool, self.path, self.scratch / "archive.tar", fs.free_bytes(self.scratch))  # fmt: skip
            found = await stoppable(TarBox, archive, str(self.path))
            if found.kind == "tar":
                self._sources = [from_file(archive, str(self.path))]
                return Picked([], Run())
            kind, box = found.kind, found
        if kind == "export":
            raise InvalidInputError(
                f"{self.path} is an image that banger exported, not a root file system",
                hint=f"banger image import {self.path}",
            )
        picked = await in_thread(pick_oci if kind == "oci" else pick_docker, box, self.ref)
        self._sources = from_box(box, picked.layers)
        if picked.boot is not None:
            self.boot = await stoppable(_copy_boot, box, picked.boot, self.scratch / "boot.tar.zst")
        return picked

    async def _complete(self) -> None:
        """Put what is missing over the layers."""
        native = self._tree.look(AGENT) is not None
        extra: list[Path] = []
        if not native:
            found = look_at(self._tree)
            self.services = found.services if self.asked_services is None else self.asked_services
            python = "its own Python" if found.python else "a Python added"
            await self._say("agent", f"{'systemd' if found.systemd else 'an init added'}, {python}")
            if not found.python:
                base = self._needed_base(
                    "it has no Python 3.9 or newer, which the agent needs, and"
                )
                extra += await take_python(base.rootfs, base.manifest.name, self.scratch, EPOCH_S)
            contents = read_contents(self._tree, self._contents)
            layer = additions(
                self._tree, contents, found, await self._busybox(), self.services, self._run, start=self.start_command
            )  # fmt: skip
            own = self.scratch / "additions.tar"
            await in_thread(own.write_bytes, layer.tar(EPOCH_S))
            extra.append(own)
        extra += await self._modules()
        for path in extra:
            source = from_file(path, "banger's own layer", whiteouts=True)
            self._sources.append(source)
            await self._scan(len(self._sources) - 1, source)

    async def _modules(self) -> list[Path]:
        """The modules of the base image's kernel, unless the root has them."""
        if self.base is None:
            return []
        release = self.base.manifest.kernel_release
        if self._tree.look(f"/lib/modules/{release}") is not None:
            return []
        place = await resolve(self.base.rootfs, f"/lib/modules/{release}")
        if place is None:
            return []
        target = self.scratch / "modules.tar"
        await dump_tar(self.base.rootfs, {place: "lib/modules"}, target, self.scratch)
        return [target]

    async def _busybox(self) -> bytes:
        """A static busybox: with it an init is run, and what else a root may lack."""
        base = self._needed_base("banger's init is run by a static busybox, and")
        for place in BUSYBOX:
            path = await resolve(base.rootfs, place)
            data = await read_file(base.rootfs, path) if path is not None else None
            found = read_elf(data) if data is not None else None
            if data is not None and found is not None and found.static:
                return data
        raise HostLacksError(
            f"image {base.manifest.name} has no static busybox",
            hint="give an image that banger built: --kernel-from debian",
        )

    def _needed_base(self, why: str) -> Base:
        if self.base is None:
            raise InvalidInputError(
                f"{self.path} needs an image beside it",
                detail=f"{why} no image was named to take it from",
                hint="add --kernel-from IMAGE, for example: --kernel-from debian",
            )
        return self.base

    def _check_space(self, size_bytes: int) -> None:
        """A clean tar and a tree of it, then that tree and the image, lie on the disk together."""
        needed, free = 2 * size_bytes + 64 * MIB, fs.free_bytes(self.work)
        if needed > free:
            raise HostLacksError(
                f"no space to make an image of {self.path}",
                detail=f"{format_size(free)} are free, {format_size(needed)} are needed",
                hint=f"free some, or set BANGER_STATE_DIR to another disk; see: df -h {self.work.parent}",
            )


def _disk_bytes(size_bytes: int, names: int) -> int:
    """A size with a quarter of room for both data and inodes, in whole GiB."""
    needed = max(size_bytes + size_bytes // 4 + 512 * MIB, names * _INODE_BYTES * 5 // 4)
    if needed > 2 * MAX_ROOT_BYTES:
        raise InvalidInputError(f"the root has {format_size(size_bytes)}", hint="import something smaller")  # fmt: skip
    return max(_LEAST_DISK_BYTES, -(-needed // GIB) * GIB)


def _copy_boot(box: Box, layer: LayerFile, target: Path, *, between: fs.Between) -> Path:
    """The boot stack's file, held to its digest."""
    file, size_bytes = box.open(layer.name)
    with file, target.open("xb") as copy:
        counted = Counted(file, 4 << 30, layer.what, between=between)
        while data := counted.take(1 << 20):
            copy.write(data)
    if counted.digest != layer.digest or size_bytes != layer.size_bytes:
        raise InvalidInputError(f"{layer.what} is not what its digest says", hint="get the file again")  # fmt: skip
    return target
