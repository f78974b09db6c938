"""One image build, from recipe to sealed directory. Unprivileged: everything that needs root runs in a user namespace.

::

    mmdebstrap ──> root.tar ──┬─> tree ──> rootfs.img          (mke2fs -d, times fixed: equal inputs, equal bytes)
                              ├─> vmlinuz ──> vmlinux
                              ├─> modules, busybox ──> initramfs.img
                              └─> tree/root ──> work-seed.img
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import platform
import shlex
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from banger.host.exec import find_program, run
from banger.host.threads import in_thread
from banger.images.boot_files import VMLINUZ, Kernel, Known, place_kernel
from banger.images.ext4 import make_ext4, unpack
from banger.images.initramfs import make_initramfs
from banger.images.pack import payload_files, payload_tar
from banger.images.recipe import LoadedRecipe
from banger.images.resources import payload_dir
from banger.images.roottar import RootParts, read_parts
from banger.images.sandbox import check_sandbox, remove_mapped, sandboxed
from banger.images.seal import seal_file, write_manifest
from banger.model import clock
from banger.model.errors import HostLacksError
from banger.model.manifest import ImageManifest, Service
from banger.model.units import GIB, format_size

Progress = Callable[[str, str], Awaitable[None] | None]
BUILDER = 2  # to be raised when the same inputs would give other bytes
EPOCH_S = 1767225600  # 2026-01-01: every time stamp in an image
SPACE_BYTES = 3 * GIB
ROOT_JOURNAL_MIB = (
    64  # ext4 cannot be grown online over a small one: a resize needs a quarter of it
)
WORK_JOURNAL_MIB = 16
_BOOTSTRAP_S = 3600.0
_TICK_S = 0.5
FILES = ("rootfs.img", "work-seed.img", "vmlinux", "vmlinuz", "initramfs.img")
_TOOLS = (
    ("mmdebstrap", "mmdebstrap"),
    ("tar", "tar"),
    ("mke2fs", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
)
_EXCLUDED = ("./dev/*", "./boot/vmlinuz-*", "./boot/initrd.img*")


def inputs_digest(loaded: LoadedRecipe, mirror: str | None, agent: Path | None = None) -> str:
    """SHA-256 over all that an image is made from, as far as banger controls it (not the mirror's content)."""
    init = (payload_dir() / "init").read_bytes()
    files = {**payload_files(loaded, agent), "init": init}
    known = {
        "builder": BUILDER,
        "epoch": EPOCH_S,
        "mirror": mirror,
        "recipe": msgspec.to_builtins(loaded),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())},
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


@dataclass(slots=True)
class Build:
    """One run in the empty directory ``work``; ``log`` collects what the tools say, ``agent`` replaces the agent's package,
    ``ref`` is how the recipe was called.
    """

    loaded: LoadedRecipe
    name: str
    mirror: str | None
    work: Path
    log: Path
    progress: Progress
    agent: Path | None = None
    ref: str = ""
    known_kernels: Known = field(default_factory=dict)

    async def run(self) -> ImageManifest:
        """Make all files and the manifest in ``work``."""
        await check_host()
        tar = self.work / "root.tar"
        chosen = f"{len(self.loaded.packages)} packages and what they need"
        await self._say("packages", chosen)
        await self._bootstrap(tar)
        await self._say("packages", chosen)
        await self._say("rootfs", "unpack")
        parts = await asyncio.to_thread(read_parts, tar, self.loaded.recipe.kernel_modules)
        tree = self.work / "tree"
        tree.mkdir()
        await unpack(tar, tree, exclude=_EXCLUDED)
        tar.unlink()
        await self._say("rootfs", f"{format_size(self.loaded.disk_bytes)}, ext4")
        await make_ext4(
            tree,
            self.work / "rootfs.img",
            self.loaded.disk_bytes,
            "banger-root",
            epoch_s=EPOCH_S,
            journal_mib=ROOT_JOURNAL_MIB,
        )
        await self._say("kernel", parts.release)
        kernel = await in_thread(self._write_kernel, parts)
        await self._say("kernel", f"{parts.release}, {kernel.how}")
        await self._say("initramfs", f"{len(parts.modules)} modules")
        await in_thread(self._write_initramfs, parts)
        await self._say("seed", format_size(self.loaded.work_seed_bytes))
        await make_ext4(
            tree / "root", self.work / "work-seed.img", self.loaded.work_seed_bytes, "banger-work",
            epoch_s=EPOCH_S, journal_mib=WORK_JOURNAL_MIB,
        )  # fmt: skip
        await remove_mapped(tree)
        await self._say("seal", "digests")
        return await in_thread(self._seal, parts, kernel)

    async def _say(self, stage: str, detail: str) -> None:
        outcome = self.progress(stage, detail)
        if outcome is not None:
            await outcome

    async def _bootstrap(self, tar: Path) -> None:
        payload, scratch = self.work / "payload.tar", self.work / "tmp"
        payload.write_bytes(payload_tar(payload_files(self.loaded, self.agent), EPOCH_S))
        recipe = self.loaded.recipe
        argv = [
            find_program("mmdebstrap", package="mmdebstrap"), "--mode=root", "--variant=minbase",
            f"--architectures={recipe.architecture}", f"--include={','.join(self.loaded.packages)}",
            f"--customize-hook=tar-in {shlex.quote(str(payload))} /",
            '--customize-hook=chroot "$1" /bin/sh /usr/lib/banger/finish.sh',
            recipe.release, str(tar), *([self.mirror] if self.mirror else []),
        ]  # fmt: skip
        last = ""

        def note(line: str) -> None:
            nonlocal last
            last = line.removeprefix("I: ")[:100]
            with self.log.open("a") as file:
                file.write(line + "\n")

        async def tick() -> None:
            shown = ""
            while True:
                await asyncio.sleep(_TICK_S)
                if last != shown:
                    shown = last
                    await self._say("packages", shown)

        ticker = asyncio.create_task(tick())
        try:
            scratch.mkdir()
            env = {"SOURCE_DATE_EPOCH": str(EPOCH_S), "TMPDIR": str(scratch)}
            await run(sandboxed(argv), timeout_s=_BOOTSTRAP_S, env=env, on_line=note)
        finally:
            ticker.cancel()
            payload.unlink(missing_ok=True)
        await remove_mapped(scratch)

    def _write_kernel(self, parts: RootParts) -> Kernel:
        (self.work / VMLINUZ).write_bytes(parts.vmlinuz)
        return place_kernel(self.work, self.known_kernels)

    def _write_initramfs(self, parts: RootParts) -> None:
        init = (payload_dir() / "init").read_bytes()
        modules = {path: parts.modules[path] for path in parts.module_order}
        (self.work / "initramfs.img").write_bytes(make_initramfs(parts.busybox, modules, init))

    def _seal(self, parts: RootParts, kernel: Kernel) -> ImageManifest:
        rest = [name for name in FILES if name not in kernel.files]
        files = {**kernel.files, **{name: seal_file(self.work / name) for name in rest}}
        recipe = self.loaded.recipe
        manifest = ImageManifest(
            id="",
            name=self.name,
            distribution=recipe.distribution,
            release=recipe.release,
            architecture=recipe.architecture,
            created_at=clock.now(),
            inputs_digest=inputs_digest(self.loaded, self.mirror, self.agent),
            disk_bytes=self.loaded.disk_bytes,
            kernel_release=parts.release,
            cmdline=recipe.cmdline,
            files=files,
            services=tuple(Service(service.name, service.port) for service in recipe.services),
            packages=parts.packages,
            recipe=self.ref,
            kernel_digest=kernel.digest,
            pvh=kernel.facts.pvh,
        )
        return write_manifest(self.work, manifest)


async def check_host() -> None:
    """HostLacksError if something that a build needs is missing, with the command that mends it."""
    if platform.machine() != "x86_64":
        raise HostLacksError(
            f"images can only be built for x86_64 yet, not {platform.machine()}",
            hint="banger image list",
        )
    for name, package in _TOOLS:
        find_program(name, package=package)
    await check_sandbox()
