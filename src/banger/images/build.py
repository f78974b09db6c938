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
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from banger.host.exec import find_program
from banger.host.threads import in_thread
from banger.images.boot_files import VMLINUZ, Kernel, Known, place_kernel
from banger.images.command import Command
from banger.images.customize import write_payload
from banger.images.distributions import Distribution, distribution
from banger.images.ext4 import EPOCH_S, TOOL_S, ext4_commands, run_ext4, unpack_command
from banger.images.home import JOURNAL_MIB, complete, fingerprint
from banger.images.initramfs import make_initramfs
from banger.images.inventory import write_sbom
from banger.images.job import Job
from banger.images.pack import EXECUTABLE, payload_files
from banger.images.recipe import LoadedRecipe
from banger.images.resources import payload_dir
from banger.images.roottar import RootParts, read_parts
from banger.images.sandbox import check_sandbox, remove_mapped
from banger.images.seal import seal_file, write_manifest
from banger.images.tools import add_tools
from banger.model import clock
from banger.model.errors import HostLacksError
from banger.model.manifest import BUILT, PAYLOAD, HistoryEntry, ImageManifest, Service
from banger.model.units import GIB, format_size

Progress = Callable[[str, str], Awaitable[None] | None]
BUILDER = 3  # to be raised when the same inputs would give other bytes
SPACE_BYTES = 3 * GIB
ROOT_JOURNAL_MIB = (
    64  # ext4 cannot be grown online over a small one: a resize needs a quarter of it
)
_TICK_S = 0.5
FILES = ("rootfs.img", "work-seed.img", "vmlinux", "vmlinuz", "initramfs.img")
_TOOLS = (
    ("tar", "tar"),
    ("mke2fs", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
)
_EXCLUDED = ("./dev/*", "./boot/vmlinuz-*", "./boot/initrd.img*")


def mirrors_of(loaded: LoadedRecipe, mirror: str | None) -> tuple[str, ...]:
    """Where packages come from: the recipe's mirrors before the configuration's ``mirror``; nowhere is the tools' default."""
    return loaded.mirrors or ((mirror,) if mirror else ())


def inputs_digest(loaded: LoadedRecipe, mirror: str | None, agent: Path | None = None) -> str:
    """SHA-256 over all that an image is made from, as far as banger controls it (not the mirror's content)."""
    boot = {name: (payload_dir() / name).read_bytes() for name in ("init", "flatten.sh")}
    files = {**payload_files(loaded, agent), **boot}
    known = {
        "builder": BUILDER,
        "epoch": EPOCH_S,
        "mirrors": mirrors_of(loaded, mirror),
        "recipe": loaded.fingerprint(),
        "seed": fingerprint(),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())},
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


@dataclass(slots=True)
class Build:
    """One run in the empty directory ``work``; ``log`` collects what the tools say, ``agent`` replaces the agent's package,
    ``ref`` is how the recipe was called, ``downloads`` where fetched archives are kept.
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
    downloads: Path | None = None
    tools: Path = Path("/nonexistent")

    @property
    def tree(self) -> Path:
        """The root file system, unpacked."""
        return self.work / "tree"

    @property
    def job(self) -> Job:
        """What the distribution is told."""
        mirrors = mirrors_of(self.loaded, self.mirror)
        return Job(self.loaded, self.work, mirrors, EPOCH_S, self.downloads)

    @property
    def unpacking(self) -> Command:
        """What unpacks the root."""
        return unpack_command(self.job.tar, self.tree, exclude=_EXCLUDED)

    @property
    def root_commands(self) -> tuple[Command, Command]:
        """What makes the root's file system."""
        image = self.work / "rootfs.img"
        return ext4_commands(
            self.tree, image, "banger-root", epoch_s=EPOCH_S, journal_mib=ROOT_JOURNAL_MIB
        )

    @property
    def seed_commands(self) -> tuple[Command, Command]:
        """What makes the work seed."""
        image = self.work / "work-seed.img"
        return ext4_commands(
            self.tree / "root", image, "banger-work", epoch_s=EPOCH_S, journal_mib=JOURNAL_MIB
        )

    async def run(self) -> ImageManifest:
        """Make all files and the manifest in ``work``."""
        await check_host(self.distribution)
        tar = self.work / "root.tar"
        chosen = f"{len(self.loaded.packages)} packages and what they need"
        await self._bootstrap(chosen)
        await self._say("packages", chosen)
        await self._say("rootfs", "unpack")
        parts = await asyncio.to_thread(
            read_parts, tar, self.loaded.recipe.kernel_modules, self.distribution
        )
        self.tree.mkdir()
        await self.unpacking.run(timeout_s=TOOL_S)
        tar.unlink()
        await self._say("rootfs", f"{format_size(self.loaded.disk_bytes)}, ext4")
        rootfs, seed = self.work / "rootfs.img", self.work / "work-seed.img"
        await run_ext4(self.root_commands, rootfs, self.loaded.disk_bytes, EPOCH_S)
        await self._say("kernel", parts.release)
        kernel = await in_thread(self._write_kernel, parts)
        await self._say("kernel", f"{parts.release}, {kernel.how}")
        await self._say("initramfs", f"{len(parts.modules)} modules")
        await in_thread(self._write_initramfs, parts)
        await self._say("seed", format_size(self.loaded.work_seed_bytes))
        await run_ext4(self.seed_commands, seed, self.loaded.work_seed_bytes, EPOCH_S)
        await complete(seed)
        await remove_mapped(self.tree)
        await self._say("seal", "digests")
        return await in_thread(self._seal, parts, kernel)

    async def _say(self, stage: str, detail: str) -> None:
        outcome = self.progress(stage, detail)
        if outcome is not None:
            await outcome

    async def _bootstrap(self, chosen: str) -> None:
        job = self.job
        files = payload_files(self.loaded, self.agent)
        await in_thread(_write_payload, job, files)
        await self._add_tools(job)
        await self._say("packages", chosen)
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
            job.scratch.mkdir()
            await self.distribution.make(job, note)
        finally:
            ticker.cancel()
            job.payload.unlink(missing_ok=True)
        await remove_mapped(job.scratch)

    async def _add_tools(self, job: Job) -> None:
        """The recipe's tools into the payload."""
        tools = self.loaded.recipe.tools
        if tools:
            said = ", ".join(f"{tool.name} {tool.version}" for tool in tools)
            await self._say("tools", said)
            await add_tools(tools, self.tools, self.work / "npm", job.payload, EPOCH_S)
            await self._say("tools", said)

    @property
    def distribution(self) -> Distribution:
        """What makes the root."""
        return distribution(self.loaded.recipe.distribution)

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
            services=tuple(Service(one.name, one.port, one.path) for one in recipe.services),
            packages={package.name: package.version for package in parts.packages},
            recipe=self.ref,
            kernel_digest=kernel.digest,
            pvh=kernel.facts.pvh,
            payload=PAYLOAD,
            seed=fingerprint(),
            history=(HistoryEntry(clock.now(), BUILT),),
        )
        sealed = write_manifest(self.work, manifest)
        write_sbom(self.work, sealed, parts.packages)
        return sealed


def _write_payload(job: Job, files: dict[str, bytes]) -> None:
    write_payload(job.payload, files, job.loaded, executable=EXECUTABLE, epoch_s=job.epoch_s)


async def check_host(wanted: Distribution) -> None:
    """HostLacksError if something that a build of this distribution needs is missing, with the command that mends it."""
    if platform.machine() != "x86_64":
        raise HostLacksError(
            f"images can only be built for x86_64 yet, not {platform.machine()}",
            hint="banger image list",
        )
    for name, package in (*wanted.tools, *_TOOLS):
        find_program(name, package=package)
    await check_sandbox()
