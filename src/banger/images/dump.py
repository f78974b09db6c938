"""Files out of an ext4, a qcow2 or a partitioned disk, that somebody else made: never mounted, and read in a cage."""

from __future__ import annotations

import os
import posixpath
import struct
from pathlib import Path
from typing import Any, Final

import msgspec

from banger.host import fs
from banger.host.exec import find_program, run
from banger.host.threads import in_thread, stoppable
from banger.images.boxes import SourceKind, head_of, kind_by_head, open_regular
from banger.images.cage import caged
from banger.images.ext4 import EPOCH_S, TOOL_S, check_ext4, copy_out
from banger.images.layers import MAX_ROOT_BYTES
from banger.images.sandbox import remove_mapped
from banger.model.errors import CommandFailedError, InvalidInputError
from banger.model.units import format_size

_LOOK_S: Final = 60.0
_SECTOR_BYTES: Final = 512
_GPT_ENTRY_BYTES: Final = 128
_MAX_PARTITIONS: Final = 128
_TABLE_BYTES: Final = 1 << 20
_CLEAN, _FIXED = 0, 1
_MAX_VIRTUAL_BYTES: Final = 1 << 44


async def raw_root(path: Path, kind: SourceKind, work: Path) -> Path:
    """The ext4 with the root in ``path``, which is an ext4, a qcow2 or a disk with partitions: ``path`` itself, or a new file in ``work``."""
    if kind == "qcow2":
        path = await _from_qcow2(path, work)
        found = kind_by_head(await in_thread(head_of, path, "disk"))
        kind = found if found == "ext4" else "disk"
    if kind == "disk":
        path = await _largest_ext4(path, work)
    await check_whole(path)
    return path


async def check_whole(image: Path) -> None:
    """InvalidInputError unless e2fsck finds nothing wrong: what it would mend may be a trap for whoever reads the file system."""
    await check_ext4(image, "rootfs")
    tool = find_program("e2fsck", package="e2fsprogs")
    done = await run(caged([tool, "-f", "-n", str(image)], image.parent), timeout_s=TOOL_S, check=False)  # fmt: skip
    if done.returncode != _CLEAN:
        said = done.stdout.decode(errors="replace").strip().splitlines()
        raise InvalidInputError(
            f"the file system of {image} has errors",
            detail="\n".join(said[-6:])[:800],
            hint=f"e2fsck -f {image}",
        )


async def dump_tar(image: Path, paths: dict[str, str], target: Path, work: Path) -> None:
    """Write ``target``, a tar of directories of the ext4 ``image`` with owners and modes: ``paths`` maps each to the directory to put it in,
    which is no part of the tar.

    Hard links become files of their own, devices are left out.
    """
    tree = work / f"{target.name}.tree"
    await in_thread(tree.mkdir)
    inside = []
    for path, place in paths.items():
        into = tree / place
        await in_thread(into.mkdir, parents=True, exist_ok=True)
        await copy_out(image, path, into)
        inside.append(posixpath.normpath(posixpath.join(place, path.rpartition("/")[2])))
    await in_thread(
        os.utime, tree, (EPOCH_S, EPOCH_S)
    )  # else the root of a root would have the time of now
    argv = [
        *(find_program("tar", package="tar"), "-c", "--numeric-owner", "--sort=name", "--format=pax"),
        *("--pax-option=delete=atime,delete=ctime", "-C", str(tree), "-f", str(target), "--", *(f"./{name}" for name in inside)),
    ]  # fmt: skip
    await run(caged(argv, work), timeout_s=TOOL_S)
    await remove_mapped(tree)


async def _from_qcow2(path: Path, work: Path) -> Path:
    """A qcow2 as a raw file. One that lies over another file would bring in any file of the user's that it names: it is refused."""
    tool = find_program("qemu-img", package="qemu-utils")
    try:
        done = await run(caged([tool, "info", "-f", "qcow2", "--output=json", str(path)], work), timeout_s=_LOOK_S)  # fmt: skip
    except CommandFailedError as error:
        raise InvalidInputError(f"{path} is a damaged qcow2", detail=error.detail, hint=f"qemu-img check {path}") from error  # fmt: skip
    facts = msgspec.json.decode(done.stdout, type=dict[str, Any])
    special = facts.get("format-specific", {}).get("data", {})
    if "backing-filename" in facts or "data-file" in special or special.get("encrypt"):
        raise InvalidInputError(
            f"{path} is a qcow2 that needs another file or a key",
            hint=f"qemu-img convert -O qcow2 {path} whole.qcow2, then give whole.qcow2",
        )
    size_bytes = int(facts["virtual-size"])
    if size_bytes > _MAX_VIRTUAL_BYTES:
        raise InvalidInputError(f"{path} is a disk of {format_size(size_bytes)}", hint="give a smaller disk")  # fmt: skip
    raw = work / "disk.raw"
    argv = [tool, "convert", "-f", "qcow2", "-O", "raw", "-S", "64k", str(path), str(raw)]
    try:
        await run(caged(argv, work), timeout_s=TOOL_S)
    except CommandFailedError as error:
        if "No space" in error.detail:
            raise
        raise InvalidInputError(f"{path} is a damaged qcow2", detail=error.detail, hint=f"qemu-img check {path}") from error  # fmt: skip
    return raw


async def _largest_ext4(disk: Path, work: Path) -> Path:
    """The largest partition of ``disk`` that is an ext4, as a file of its own."""
    parts = await in_thread(_read_partitions, disk)
    root = work / "root.part"
    for size_bytes, begin in sorted(parts, reverse=True):
        if await stoppable(_take_part, disk, begin, size_bytes, root):
            return root
    raise InvalidInputError(
        f"{disk} has no partition with an ext4 root file system",
        detail=f"{len(parts)} partitions were found",
        hint=f"sfdisk --list {disk}",
    )


def _read_partitions(disk: Path) -> list[tuple[int, int]]:
    with open_regular(disk, "disk") as file:
        return partitions(file.read(_TABLE_BYTES), os.fstat(file.fileno()).st_size)


def partitions(head: bytes, disk_bytes: int) -> list[tuple[int, int]]:
    """Sizes and begins in bytes of the partitions on a disk that begins with ``head``, as far as they lie on it.

    A GPT (UEFI specification 2.10, 5.3) with sectors of 512 bytes, else the four primary ones of an MBR.
    """
    found = []
    if head[512:520] == b"EFI PART":
        table, count, size = struct.unpack_from("<QII", head, 512 + 72)
        for number in range(min(count, _MAX_PARTITIONS) if size >= _GPT_ENTRY_BYTES else 0):
            at = table * _SECTOR_BYTES + number * size
            if at + _GPT_ENTRY_BYTES > len(head):
                break
            first, last = struct.unpack_from("<QQ", head, at + 32)
            if head[at : at + 16] != bytes(16):
                found.append(((last - first + 1) * _SECTOR_BYTES, first * _SECTOR_BYTES))
    elif head[510:512] == b"\x55\xaa":
        for at in range(446, 510, 16):
            first, count = struct.unpack_from("<II", head, at + 8)
            found.append((count * _SECTOR_BYTES, first * _SECTOR_BYTES))
    return [(size, begin) for size, begin in found if size > 0 and 0 < begin <= disk_bytes - size]


def _take_part(disk: Path, begin: int, size_bytes: int, target: Path, *, between: fs.Between) -> bool:  # fmt: skip
    with open_regular(disk, "disk") as file:
        file.seek(begin)
        if kind_by_head(file.read(4096)) != "ext4" or size_bytes > MAX_ROOT_BYTES:
            return False
        with target.open("xb") as copy:
            fs.copy_section(file.fileno(), begin, size_bytes, copy.fileno(), between=between)
    return True
