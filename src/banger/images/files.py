"""What files an image's root file system has, read by debugfs: no mount, no privilege, whoever made the image.

Directories are listed level by level, then contents are read in batches and digested. The names are the image's own, so anything:
they are decoded for show, and only inode numbers are told to debugfs. A list is kept beside the image, whose files never change.
"""

from __future__ import annotations

import hashlib
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from banger.api.malformed import NOT_JSON
from banger.host import fs
from banger.host.exec import find_program, run
from banger.host.threads import in_thread
from banger.images.ext4 import TOOL_S
from banger.model.errors import InvalidInputError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FILES = "files.json.zst"
_MOST_FILES = 4_000_000
_BATCH_BYTES, _BATCH_FILES, _BATCH_DIRECTORIES = 24 << 20, 4000, 500
_FAST_LINK_BYTES = 60  # ext4 keeps shorter targets in the inode
_ENTRY = re.compile(rb"/(\d+)/(\d{6})/(\d+)/(\d+)/(.*)/(\d*)/", re.DOTALL)
_TARGET = re.compile(rb'Fast link dest: "(.*)"\n', re.DOTALL)
_KINDS = {0o10: "file", 0o04: "directory", 0o12: "link", 0o02: "character device", 0o06: "block device", 0o01: "fifo", 0o14: "socket"}  # fmt: skip


class FileFact(msgspec.Struct, frozen=True):
    """``mode`` has the permissions alone; ``digest`` is the SHA-256 of a file's content, ``target`` is where a link leads."""

    kind: str
    mode: int
    uid: int
    gid: int
    size_bytes: int = 0
    digest: str = ""
    target: str = ""


class _Entry(msgspec.Struct):
    path: str
    inode: int
    kind: str
    mode: int
    uid: int
    gid: int
    size_bytes: int


async def files_of(directory: Path) -> dict[str, FileFact]:
    """The files of the image in ``directory`` by their paths, as kept from an earlier time or read now (seconds). InvalidInputError."""
    kept = directory / FILES
    try:
        data = zstd.decompress(await in_thread(kept.read_bytes))
        return msgspec.json.decode(data, type=dict[str, FileFact])
    except (OSError, zstd.ZstdError, *NOT_JSON):
        found = await read_files(directory / "rootfs.img", directory)
    data = zstd.compress(msgspec.json.encode(found))
    await in_thread(fs.write_atomic, kept, data, mode=0o644)
    return found


async def read_files(image: Path, scratch: Path) -> dict[str, FileFact]:
    """The files in the ext4 ``image``; large ones pass through an unnamed file in the directory ``scratch``."""
    entries = await _list(image)
    contents = await _digests(image, entries, scratch)
    targets = await _targets(image, [entry for entry in entries if entry.kind == "link"])
    return {
        entry.path: FileFact(
            entry.kind,
            entry.mode,
            entry.uid,
            entry.gid,
            entry.size_bytes if entry.kind == "file" else 0,
            contents.get(entry.inode, "") if entry.kind == "file" else "",
            targets.get(entry.inode, ""),
        )
        for entry in sorted(entries, key=lambda entry: entry.path)
    }


async def _debugfs(image: Path, commands: Sequence[str], **options: Any) -> bytes:  # noqa: ANN401  of `run`
    """What debugfs prints, each command after a line of its own; InvalidInputError if it complains."""
    tool = find_program("debugfs", package="e2fsprogs")
    script = "".join(f"{command}\n" for command in commands).encode()
    done = await run([tool, "-f", "-", str(image)], timeout_s=TOOL_S, input=script, **options)
    complaint = done.stderr.decode(errors="replace").partition("\n")[2].strip()
    if complaint:
        raise InvalidInputError(
            f"the file system {image} cannot be read",
            detail=complaint[:500],
            hint=f"e2fsck -fn {image}",
        )
    return done.stdout


def _outputs(printed: bytes, commands: Sequence[str]) -> Iterator[bytes]:
    """The output of each command: what stands between its line and the next one's."""
    at = 0
    for number, command in enumerate(commands):
        line = f"debugfs: {command}\n".encode()
        begin = printed.find(line, at) + len(line)
        following = commands[number + 1] if number + 1 < len(commands) else None
        at = len(printed) if following is None else printed.find(f"debugfs: {following}\n".encode(), begin)  # fmt: skip
        yield printed[begin : max(begin, at)]


async def _list(image: Path) -> list[_Entry]:
    found: list[_Entry] = []
    level = {2: ""}  # inode 2 is the root
    seen = {2}
    while level:
        below: dict[int, str] = {}
        for batch in _batches(list(level), _BATCH_DIRECTORIES):
            commands = [f"ls -p <{inode}>" for inode in batch]
            printed = await _debugfs(image, commands)
            for inode, output in zip(batch, _outputs(printed, commands), strict=True):
                for entry in _entries(level[inode], output):
                    found.append(entry)
                    if entry.kind == "directory" and entry.inode not in seen:
                        seen.add(entry.inode)
                        below[entry.inode] = entry.path
        if len(found) > _MOST_FILES:
            raise InvalidInputError(
                f"{image} has more than {_MOST_FILES} files", hint="banger image list"
            )
        level = below
    return found


def _entries(directory: str, printed: bytes) -> Iterator[_Entry]:
    line = b""
    for part in printed.split(b"\n"):  # a name may have a line's end in it
        line = line + b"\n" + part if line else part
        match = _ENTRY.fullmatch(line)
        if match is None:
            continue
        line = b""
        inode, mode, uid, gid = int(match[1]), int(match[2], 8), int(match[3]), int(match[4])
        name = match[5].decode(errors="backslashreplace")
        if name not in {".", ".."} and inode:
            kind = _KINDS.get(mode >> 12, "unknown")
            yield _Entry(f"{directory}/{name}", inode, kind, mode & 0o7777, uid, gid, int(match[6] or 0))  # fmt: skip


def _batches(items: list[int], count: int) -> Iterator[list[int]]:
    for start in range(0, len(items), count):
        yield items[start : start + count]


async def _digests(image: Path, entries: list[_Entry], scratch: Path) -> dict[int, str]:
    """SHA-256 of each regular file's inode."""
    sizes = {entry.inode: entry.size_bytes for entry in entries if entry.kind == "file"}
    digests = {inode: hashlib.sha256().hexdigest() for inode, size in sizes.items() if not size}
    batch: list[int] = []
    room = _BATCH_BYTES
    for inode, size in sorted(sizes.items()):
        if size > _BATCH_BYTES:
            digests[inode] = await _large(image, inode, scratch)
        elif size:
            if size > room or len(batch) == _BATCH_FILES:
                digests |= await _batch(image, batch, sizes)
                batch, room = [], _BATCH_BYTES
            batch.append(inode)
            room -= size
    if batch:
        digests |= await _batch(image, batch, sizes)
    return digests


async def _batch(image: Path, batch: list[int], sizes: dict[int, int]) -> dict[int, str]:
    printed = memoryview(await _debugfs(image, [f"cat <{inode}>" for inode in batch]))
    digests, at = {}, 0
    for inode in batch:
        at += len(f"debugfs: cat <{inode}>\n")
        digests[inode] = hashlib.sha256(printed[at : at + sizes[inode]]).hexdigest()
        at += sizes[inode]
    if at != len(printed):
        raise InvalidInputError(
            f"the file system {image} cannot be read",
            detail=f"{at} bytes were to be there, {len(printed)} were",
            hint=f"e2fsck -fn {image}",
        )
    return digests


async def _large(image: Path, inode: int, scratch: Path) -> str:
    with tempfile.TemporaryFile(dir=scratch) as file:
        number = file.fileno()
        await _debugfs(image, [f"dump <{inode}> /dev/fd/{number}"], pass_fds=[number])
        file.seek(0)
        return (await in_thread(hashlib.file_digest, file, "sha256")).hexdigest()


async def _targets(image: Path, links: list[_Entry]) -> dict[int, str]:
    """Where links lead."""
    targets: dict[int, str] = {}
    sizes = {link.inode: link.size_bytes for link in links}
    for batch in _batches(sorted(sizes), _BATCH_FILES):
        commands = [
            f"{'stat' if sizes[inode] < _FAST_LINK_BYTES else 'cat'} <{inode}>" for inode in batch
        ]
        printed = await _debugfs(image, commands)
        for inode, output in zip(batch, _outputs(printed, commands), strict=True):
            match = _TARGET.search(output)
            target = match[1] if match else output
            targets[inode] = target.decode(errors="backslashreplace")
    return targets
