"""ext4 file systems, without privilege: made reproducibly from a tree, and looked at without a mount.

`mke2fs -d` sorts directories and keeps mtimes, but copies atime and ctime of the tree, which nobody can set; they are set afterwards
with debugfs. UUID and hash seed are fixed, and E2FSPROGS_FAKE_TIME gives every other time stamp.
"""

from __future__ import annotations

import posixpath
import re
import uuid
from collections.abc import Sequence
from pathlib import Path

from banger.host import fs
from banger.host.exec import find_program, run
from banger.images.cage import caged
from banger.images.command import Command
from banger.model.errors import HostLacksError, InvalidInputError
from banger.model.units import format_size

_NAMESPACE = uuid.UUID("6f4b7f0e-2f0c-5d0e-9d57-6b616e676572")
_OPTIONS = "lazy_itable_init=1,lazy_journal_init=1,nodiscard"
EPOCH_S = 1767225600  # 2026-01-01: every time stamp in an image
TOOL_S = 900.0
_LOOK_S = 60.0
_MAX_HOPS = 8
_FAST_LINK = re.compile(rb'^Fast link dest: "([!-~]{1,60})"', re.MULTILINE)
_NOT_FOUND = b"File not found by ext2_lookup"


def unpack_command(tar: Path, tree: Path, *, exclude: Sequence[str] = ()) -> Command:
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
    return Command(tuple(caged([*argv, "-f", str(tar), "-C", str(tree)], tree)))


async def unpack(tar: Path, tree: Path, *, exclude: Sequence[str] = ()) -> None:
    """Run `unpack_command`."""
    await unpack_command(tar, tree, exclude=exclude).run(timeout_s=TOOL_S)


def ext4_commands(
    tree: Path, image: Path, label: str, *, epoch_s: int, journal_mib: int
) -> tuple[Command, Command]:
    """Make the file system in the sparse file ``image``, then set times in it (which ones is told to debugfs in its input)."""
    seed = uuid.uuid5(_NAMESPACE, label)
    argv = [
        find_program("mke2fs", package="e2fsprogs"), "-q", "-F", "-t", "ext4", "-m", "0", "-L", label,
        "-U", str(seed), "-J", f"size={journal_mib}", "-E", f"hash_seed={seed},{_OPTIONS}", "-d", str(tree), str(image),
    ]  # fmt: skip
    env = {"E2FSPROGS_FAKE_TIME": str(epoch_s)}
    debugfs = [find_program("debugfs", package="e2fsprogs"), "-w", "-f", "-", str(image)]
    make = Command(tuple(caged(argv, image.parent)), {**env, "SOURCE_DATE_EPOCH": str(epoch_s)})
    return make, Command(tuple(caged(debugfs, image.parent)), env)


async def make_ext4(
    tree: Path, image: Path, size_bytes: int, label: str, *, epoch_s: int, journal_mib: int
) -> None:
    """Write the new sparse file ``image`` of ``size_bytes`` with the content of ``tree``; equal trees give equal bytes."""
    commands = ext4_commands(tree, image, label, epoch_s=epoch_s, journal_mib=journal_mib)
    await run_ext4(commands, image, size_bytes, epoch_s)


async def run_ext4(
    commands: tuple[Command, Command], image: Path, size_bytes: int, epoch_s: int
) -> None:
    """Run what `ext4_commands` gave."""
    make, fix = commands
    with image.open("xb") as file:
        file.truncate(size_bytes)
    await make.run(timeout_s=TOOL_S)
    await fix.run(timeout_s=TOOL_S, data=await _times(image, epoch_s))


async def _times(image: Path, epoch_s: int) -> bytes:
    """Set atime and ctime of every inode in use; mke2fs hands inodes out one after another, from 11 (lost+found) on."""
    debugfs = find_program("debugfs", package="e2fsprogs")
    header = await run([debugfs, "-R", "stats -h", str(image)], timeout_s=TOOL_S)
    used = _number(header.stdout, b"Inode count") - _number(header.stdout, b"Free inodes")
    script = "".join(
        f"sif <{inode}> {field} @{epoch_s}\n"
        for inode in (2, *range(11, used + 1))
        for field in ("atime", "ctime")
    )
    return script.encode()


def _number(text: bytes, name: bytes) -> int:
    for line in text.splitlines():
        if line.startswith(name + b":"):
            return int(line.rpartition(b":")[2])
    raise HostLacksError(
        f"debugfs shows no {name.decode()}", hint="install e2fsprogs 1.46 or newer"
    )


async def check_ext4(image: Path, what: str) -> None:
    """InvalidInputError unless the file ``image`` holds a whole ext4 (or ext2, ext3) that is not known to have errors."""
    tool = find_program("debugfs", package="e2fsprogs")
    done = await run([tool, "-R", "stats -h", str(image)], timeout_s=_LOOK_S, check=False)
    if b"Filesystem state:" not in done.stdout:
        raise InvalidInputError(
            f"{what} {image} is not an ext4 file system",
            detail=done.stderr.decode(errors="replace").partition("\n")[2].strip()[:500],
            hint=f"give a raw image that holds nothing but the file system; see: file {image}",
        )
    size_bytes = _number(done.stdout, b"Block count") * _number(done.stdout, b"Block size")
    there_bytes = fs.length_bytes(image)
    if there_bytes < size_bytes:
        raise InvalidInputError(
            f"{what} {image} is cut off",
            detail=f"its file system has {format_size(size_bytes)}, {format_size(there_bytes)} are there",
            hint="get the file again",
        )
    if b"with errors" in done.stdout:
        raise InvalidInputError(
            f"the file system of {what} {image} has errors", hint=f"e2fsck -f {image}"
        )


async def read_file(image: Path, path: str) -> bytes | None:
    """The content of the regular file ``path`` in the file system ``image``; None if it has none (links are not followed)."""
    tool = find_program("debugfs", package="e2fsprogs")
    done = await run([tool, "-R", f"cat {path}", str(image)], timeout_s=_LOOK_S, check=False)
    if _NOT_FOUND in done.stderr:
        return None
    complaint = done.stderr.decode(errors="replace").partition("\n")[2].strip()
    if complaint:
        raise InvalidInputError(
            f"{path} in {image} cannot be read", detail=complaint[:500], hint=f"e2fsck -f {image}"
        )
    return done.stdout or None


async def resolve(image: Path, path: str) -> str | None:
    """The absolute ``path`` in the file system ``image``, its last link and what that links to followed; None if nothing is there."""
    tool = find_program("debugfs", package="e2fsprogs")
    for _ in range(_MAX_HOPS):
        done = await run([tool, "-R", f"stat {path}", str(image)], timeout_s=_LOOK_S, check=False)
        if b"Type: " not in done.stdout:
            return None
        link = _FAST_LINK.search(done.stdout)
        if link is None:
            return path
        path = posixpath.normpath(posixpath.join(posixpath.dirname(path), link[1].decode(errors="replace")))  # fmt: skip
    return None


async def copy_out(image: Path, path: str, target: Path) -> None:
    """Copy the directory ``path`` of the file system ``image`` into the directory ``target``, with owners and modes."""
    tool = find_program("debugfs", package="e2fsprogs")
    done = await run(caged([tool, "-R", f"rdump {path} .", str(image)], target), timeout_s=TOOL_S)
    complaint = done.stderr.decode(errors="replace").partition("\n")[2].strip()
    if complaint:
        raise InvalidInputError(
            f"{path} in {image} cannot be read", detail=complaint[:500], hint=f"e2fsck -f {image}"
        )
