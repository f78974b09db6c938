"""What a work seed is made ready with, so that a clone of it is a home: directories, modes, a shell's start-up files.

No key is part of it. The managed key, like all that is one VM's, comes with the identity drive at each start, and a seed is the same for all.
`fingerprint` is the digest over all this; a seed of another fingerprint, or of none, is completed once.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from banger.host import fs
from banger.host.exec import find_program, run
from banger.host.threads import in_thread
from banger.images.ext4 import EPOCH_S, TOOL_S, copy_out, make_ext4
from banger.images.mend import edit, journal_bytes, listed, renew_journal, whole
from banger.images.resources import payload_dir
from banger.images.sandbox import check_sandbox, remove_mapped, sandboxed
from banger.model.errors import HostLacksError
from banger.model.units import GIB, MIB

LAYOUT = 1
SEED_BYTES = GIB
JOURNAL_MIB = 16
"""The kernel grows a file system while it is mounted only if the change of a group's descriptors fits a quarter of the journal."""
_DIRECTORIES = {".ssh": 0o700}
_STARTUP = {".bashrc": "bashrc", ".profile": "profile"}
"""A shell's start-up files in a home, and what they are called in the payload."""

_NESTED = {"root", ".banger-nested-root"}


@lru_cache(maxsize=1)
def fingerprint() -> str:
    """SHA-256 over what this banger makes work seeds ready with."""
    files = {name: (payload_dir() / "home" / ours).read_text() for name, ours in _STARTUP.items()}
    known = {"layout": LAYOUT, "directories": _DIRECTORIES, "files": files, "journal": JOURNAL_MIB}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


async def complete(image: Path) -> list[str]:
    """Add to the home in ``image`` what it lacks, without a mount; what that was. What is there stays as it is, whatever it is.

    A home that lies in ``root/`` is left alone: the guest moves it up before it is used, and then it is complete.
    """
    there = await listed(image, "/")
    if await _is_nested(image, set(there)):
        return []
    commands: list[str] = []
    missing: list[str] = []
    for name, mode in _DIRECTORIES.items():
        if name not in there:
            missing.append(name)
            commands += [f"mkdir {name}", *_owned(name, 0o040000 | mode)]
    if not set(_STARTUP) & set(there):
        for name, ours in _STARTUP.items():
            missing.append(name)
            commands += [f"write {ours} {name}", *_owned(name, 0o100644)]
    await edit(image, commands, cwd=payload_dir() / "home")
    now = await listed(image, "/")
    if not set(missing) <= set(now):
        raise HostLacksError(
            f"the home in {image} could not be completed",
            detail=f"missing: {' '.join(sorted(set(missing) - set(now)))}",
            hint=f"e2fsck -f {image}",
        )
    return missing


def _owned(name: str, mode: int) -> list[str]:
    return [f"sif {name} mode 0{mode:o}", f"sif {name} uid 0", f"sif {name} gid 0"]


async def _is_nested(image: Path, names: set[str]) -> bool:
    if set(_STARTUP) & names:
        return ".banger-nested-root" in names
    for name in names & _NESTED:
        if set(_STARTUP) & set(await listed(image, f"/{name}")):
            return True
    return False


async def make_growable(image: Path) -> bool:
    """Give ``image``, which must be clean, a journal with which a guest can grow it; whether it needed one."""
    if await journal_bytes(image) >= JOURNAL_MIB * MIB:
        return False
    await renew_journal(image, JOURNAL_MIB)
    return True


async def flatten(image: Path, scratch: Path) -> bool:
    """Make the home in ``root/`` of ``image``, if it has one, its whole content again; whether it had.

    ``scratch`` is a directory that does not exist yet. For seeds; work disks are seen to by their guests.
    """
    if not await _is_nested(image, set(await listed(image, "/"))):
        return False
    await check_sandbox()
    size_bytes = fs.length_bytes(image)
    await in_thread(scratch.mkdir)
    try:
        await copy_out(image, "/", scratch)
        shell = [find_program("sh"), str(payload_dir() / "flatten.sh"), str(scratch)]
        await run(sandboxed(shell), timeout_s=TOOL_S)
        await in_thread(image.unlink)
        await make_ext4(
            scratch, image, size_bytes, "banger-work", epoch_s=EPOCH_S, journal_mib=JOURNAL_MIB
        )
    finally:
        await remove_mapped(scratch)
    return True


async def make_seed(rootfs: Path, seed: Path, scratch: Path) -> None:
    """Make the new work seed ``seed`` out of the /root of ``rootfs``; ``scratch`` is a directory that does not exist yet.

    HostLacksError if the root file system is damaged: names in it would not be safe to use.
    """
    await check_sandbox()
    if not await whole(rootfs):
        raise HostLacksError(f"the file system of {rootfs} is damaged", hint=f"e2fsck -f {rootfs}")
    await in_thread(scratch.mkdir)
    try:
        await copy_out(rootfs, "/root", scratch)
        await make_ext4(
            scratch / "root", seed, SEED_BYTES, "banger-work", epoch_s=EPOCH_S, journal_mib=JOURNAL_MIB
        )  # fmt: skip
    finally:
        await remove_mapped(scratch)
    await complete(seed)
