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
import os
import platform
import pwd
import shlex
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from banger.host import fs
from banger.host.exec import find_program, run
from banger.images.ext4 import make_ext4, mapped
from banger.images.initramfs import make_initramfs
from banger.images.kernel import extract_vmlinux
from banger.images.pack import payload_files, payload_tar
from banger.images.recipe import LoadedRecipe
from banger.images.resources import payload_dir
from banger.images.roottar import RootParts, read_parts
from banger.model import clock
from banger.model.errors import HostLacksError
from banger.model.manifest import FileEntry, ImageManifest
from banger.model.units import GIB, format_size

Progress = Callable[[str, str], Awaitable[None] | None]
BUILDER = 1  # to be raised when the same inputs would give other bytes
EPOCH_S = 1767225600  # 2026-01-01: every time stamp in an image
SPACE_BYTES = 3 * GIB
ROOT_JOURNAL_MIB = 64  # ext4 cannot be grown online over a small one: a resize needs a quarter of it
WORK_JOURNAL_MIB = 16
_BOOTSTRAP_S = 3600.0
_TICK_S = 0.5
_EXCLUDED = ("./dev/*", "./boot/vmlinuz-*", "./boot/initrd.img*")


def inputs_digest(loaded: LoadedRecipe, mirror: str | None) -> str:
    """SHA-256 over all that an image is made from, as far as banger controls it (not the mirror's content)."""
    init = (payload_dir() / "init").read_bytes()
    files = {**payload_files(loaded), "init": init}
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
    """One run in the empty directory ``work``; ``log`` collects what the tools say."""

    loaded: LoadedRecipe
    name: str
    mirror: str | None
    work: Path
    log: Path
    progress: Progress

    async def run(self) -> ImageManifest:
        """Make all files and the manifest in ``work``."""
        tar = self.work / "root.tar"
        await self._say("packages", f"{len(self.loaded.packages)} packages and what they need")
        await self._bootstrap(tar)
        await self._say("rootfs", "unpack")
        parts = await asyncio.to_thread(read_parts, tar, self.loaded.recipe.kernel_modules)
        tree = self.work / "tree"
        tree.mkdir()
        await self._unpack(tar, tree)
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
        await asyncio.to_thread(self._write_boot_stack, parts)
        await self._say("seed", format_size(self.loaded.work_seed_bytes))
        await make_ext4(
            tree / "root", self.work / "work-seed.img", self.loaded.work_seed_bytes, "banger-work",
            epoch_s=EPOCH_S, journal_mib=WORK_JOURNAL_MIB,
        )  # fmt: skip
        await remove_mapped(tree)
        await self._say("seal", "digests")
        manifest = await asyncio.to_thread(self._manifest, parts)
        fs.write_atomic(
            self.work / "manifest.json",
            msgspec.json.format(msgspec.json.encode(manifest)),
            mode=0o644,
        )
        return manifest

    async def _say(self, stage: str, detail: str) -> None:
        outcome = self.progress(stage, detail)
        if outcome is not None:
            await outcome

    async def _bootstrap(self, tar: Path) -> None:
        check_bootstrap()
        payload = self.work / "payload.tar"
        payload.write_bytes(payload_tar(payload_files(self.loaded), EPOCH_S))
        recipe = self.loaded.recipe
        argv = [
            find_program("mmdebstrap", package="mmdebstrap"), "--mode=unshare", "--variant=minbase",
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
            env = {"SOURCE_DATE_EPOCH": str(EPOCH_S)}
            await run(argv, timeout_s=_BOOTSTRAP_S, env=env, on_line=note, grace_s=20)
        finally:
            ticker.cancel()
            payload.unlink(missing_ok=True)

    async def _unpack(self, tar: Path, tree: Path) -> None:
        excludes = [f"--exclude={pattern}" for pattern in _EXCLUDED]
        argv = [
            find_program("tar", package="tar"),
            "-x",
            "-p",
            "--numeric-owner",
            *excludes,
            "-f",
            str(tar),
            "-C",
            str(tree),
        ]
        await run(mapped(argv), timeout_s=900)

    def _write_boot_stack(self, parts: RootParts) -> None:
        (self.work / "vmlinuz").write_bytes(parts.vmlinuz)
        (self.work / "vmlinux").write_bytes(extract_vmlinux(parts.vmlinuz))
        init = (payload_dir() / "init").read_bytes()
        (self.work / "initramfs.img").write_bytes(make_initramfs(parts, init))

    def _manifest(self, parts: RootParts) -> ImageManifest:
        names = ("rootfs.img", "work-seed.img", "vmlinux", "vmlinuz", "initramfs.img")
        files = {name: _entry(self.work / name) for name in names}
        content = hashlib.sha256(
            "".join(entry.digest for entry in files.values()).encode()
        ).hexdigest()
        recipe = self.loaded.recipe
        return ImageManifest(
            id=content[:12],
            name=self.name,
            distribution=recipe.distribution,
            release=recipe.release,
            architecture=recipe.architecture,
            created_at=clock.now(),
            inputs_digest=inputs_digest(self.loaded, self.mirror),
            disk_bytes=self.loaded.disk_bytes,
            kernel_release=parts.release,
            cmdline=recipe.cmdline,
            files=files,
            services=tuple(recipe.services),
            packages=parts.packages,
        )


def _entry(path: Path) -> FileEntry:
    path.chmod(0o444)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return FileEntry(path.stat().st_size, fs.sparse_digest(path))


def check_bootstrap() -> None:
    """HostLacksError if a tool or the caller's subordinate ids are missing, each with the command that mends it."""
    for name, package in (
        ("mmdebstrap", "mmdebstrap"), ("tar", "tar"), ("mke2fs", "e2fsprogs"), ("debugfs", "e2fsprogs"),
    ):  # fmt: skip
        find_program(name, package=package)
    if platform.machine() != "x86_64":
        raise HostLacksError(f"images can only be built for x86_64 yet, not {platform.machine()}")
    if os.geteuid() != 0:
        find_program("newuidmap", package="uidmap")
        user = pwd.getpwuid(os.geteuid()).pw_name
        for path in (Path("/etc/subuid"), Path("/etc/subgid")):
            names = (
                {line.partition(":")[0] for line in path.read_text().splitlines()}
                if path.exists()
                else set()
            )
            if not names & {user, str(os.geteuid())}:
                raise HostLacksError(
                    f"user {user} has no subordinate ids in {path}",
                    detail="an image is built in a user namespace that needs 65536 of them",
                    hint=f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
                )


async def remove_mapped(path: Path) -> None:
    """Remove a tree that holds files of subordinate ids; idempotent."""
    if path.exists():
        await run(
            mapped([find_program("rm"), "-rf", "--one-file-system", "--", str(path)]), timeout_s=300
        )
