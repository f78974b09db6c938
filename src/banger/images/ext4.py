"""Reproducible ext4 file systems from a tree, without privilege.

`mke2fs -d` sorts directories and keeps mtimes, but copies atime and ctime of the tree, which nobody can set; they are set afterwards
with debugfs. UUID and hash seed are fixed, and E2FSPROGS_FAKE_TIME gives every other time stamp.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

from banger.host.exec import find_program, run
from banger.images.sandbox import sandboxed
from banger.model.errors import HostLacksError

_NAMESPACE = uuid.UUID("6f4b7f0e-2f0c-5d0e-9d57-6b616e676572")
_OPTIONS = "lazy_itable_init=1,lazy_journal_init=1,nodiscard"
TOOL_S = 900.0


async def unpack(tar: Path, tree: Path, *, exclude: Sequence[str] = ()) -> None:
    """Extract ``tar`` into the directory ``tree`` with its owners and modes; extended attributes are left out, because
    capabilities of files look different in a user namespace.
    """
    argv = [
        find_program("tar", package="tar"),
        "-x",
        "-p",
        "--numeric-owner",
        "--no-xattrs",
        "--no-acls",
        "--delay-directory-restore",  # else a directory whose members are not together has the time of now
    ]
    argv += [f"--exclude={pattern}" for pattern in exclude]
    await run(sandboxed([*argv, "-f", str(tar), "-C", str(tree)]), timeout_s=TOOL_S)


async def make_ext4(
    tree: Path, image: Path, size_bytes: int, label: str, *, epoch_s: int, journal_mib: int
) -> None:
    """Write the new sparse file ``image`` of ``size_bytes`` with the content of ``tree``; equal trees give equal bytes."""
    with image.open("xb") as file:
        file.truncate(size_bytes)
    seed = uuid.uuid5(_NAMESPACE, label)
    argv = [
        find_program("mke2fs", package="e2fsprogs"), "-q", "-F", "-t", "ext4", "-m", "0", "-L", label,
        "-U", str(seed), "-J", f"size={journal_mib}", "-E", f"hash_seed={seed},{_OPTIONS}", "-d", str(tree), str(image),
    ]  # fmt: skip
    await run(
        sandboxed(argv),
        timeout_s=TOOL_S,
        env={"E2FSPROGS_FAKE_TIME": str(epoch_s), "SOURCE_DATE_EPOCH": str(epoch_s)},
    )
    await _fix_times(image, epoch_s)


async def _fix_times(image: Path, epoch_s: int) -> None:
    """Set atime and ctime of every inode in use; mke2fs hands inodes out one after another, from 11 (lost+found) on."""
    debugfs = find_program("debugfs", package="e2fsprogs")
    header = await run([debugfs, "-R", "stats -h", str(image)], timeout_s=TOOL_S)
    used = _number(header.stdout, b"Inode count") - _number(header.stdout, b"Free inodes")
    script = "".join(
        f"sif <{inode}> {field} @{epoch_s}\n"
        for inode in (2, *range(11, used + 1))
        for field in ("atime", "ctime")
    )
    env = {"E2FSPROGS_FAKE_TIME": str(epoch_s)}
    await run(
        sandboxed([debugfs, "-w", "-f", "-", str(image)]),
        timeout_s=TOOL_S,
        input=script.encode(),
        env=env,
    )


def _number(text: bytes, name: bytes) -> int:
    for line in text.splitlines():
        if line.startswith(name + b":"):
            return int(line.rpartition(b":")[2])
    raise HostLacksError(
        f"debugfs shows no {name.decode()}", hint="install e2fsprogs 1.46 or newer"
    )
