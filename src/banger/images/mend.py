"""File systems that a guest had in its hands: checked, changed without a mount, and made compact.

A guest may have written anything at all into its disk, so every tool that reads it is guarded (`banger.images.sandbox.guarded`) and
bounded in time, and names that come out of it are compared with patterns before anything is done with them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from banger.host import fs
from banger.host.exec import Completed, find_program, run
from banger.host.holes import drop_zeros
from banger.host.threads import stoppable
from banger.images.ext4 import EPOCH_S
from banger.images.sandbox import guarded
from banger.model.errors import InvalidInputError
from banger.model.units import MIB

TOOL_S = 900.0
_FSCK_FINE = {0, 1, 2}  # e2fsck(8): 1 "errors corrected", 2 "and the system should be rebooted"
_SLACK_BYTES = 64 * MIB
_ROW = re.compile(r"/(\d+)/(\d+)/(\d+)/(\d+)/([^/\n]+)/(\d*)/", re.ASCII)
_JOURNAL = re.compile(rb"^Journal size:\s+(\d+)([kMG])$|^Total journal size:\s+(\d+)([kMG])$", re.MULTILINE)  # fmt: skip
_UNITS = {b"k": 1 << 10, b"M": 1 << 20, b"G": 1 << 30}
_TIME = {"E2FSPROGS_FAKE_TIME": str(EPOCH_S)}


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in a directory; ``mode`` as in st_mode."""

    name: str
    inode: int
    mode: int
    uid: int
    size_bytes: int


async def tool(
    image: Path,
    argv: Sequence[str],
    *,
    given: bytes | None = None,
    check: bool = True,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Completed:
    """Run one of e2fsprogs' tools on ``image``, guarded."""
    words = [find_program(argv[0], package="e2fsprogs"), *argv[1:]]
    line = guarded(words, file_bytes=fs.length_bytes(image) + _SLACK_BYTES)
    return await run(line, timeout_s=TOOL_S, input=given, check=check, cwd=cwd, env=env)


async def repair(image: Path, what: str, *, hint: str, discard: bool = False) -> bool:
    """Replay the journal of ``image``, check all of it, correct what is wrong; whether anything was.

    InvalidInputError if that cannot be done. ``discard``: what no file has is given back, and reads as zeros from then on.
    """
    more = ["-E", "discard"] if discard else []
    done = await tool(image, ["e2fsck", "-f", "-y", *more, str(image)], check=False)
    if done.returncode not in _FSCK_FINE:
        raise InvalidInputError(
            f"the file system of {what} cannot be repaired",
            detail=(done.stdout + done.stderr).decode(errors="replace")[-1500:].strip(),
            hint=hint,
        )
    return done.returncode != 0


async def whole(image: Path) -> bool:
    """Whether a check of everything in ``image`` finds nothing wrong; it is not changed."""
    done = await tool(image, ["e2fsck", "-f", "-n", str(image)], check=False)
    return done.returncode == 0


async def compact(image: Path, what: str, *, hint: str) -> int:
    """Make ``image``, which was repaired, as small as its files: a new journal of the old one's size, nothing in free blocks, no zeros; how
    many bytes were given back.
    """
    before = fs.allocated_bytes(image)
    journal_mib = await journal_bytes(image) // MIB
    if journal_mib:
        await renew_journal(image, journal_mib)
    await repair(image, what, hint=hint, discard=True)
    await stoppable(drop_zeros, image)
    return max(0, before - fs.allocated_bytes(image))


async def renew_journal(image: Path, size_mib: int) -> None:
    """Give ``image``, which must be clean, an empty journal of this size in place of the one that it has."""
    await tool(image, ["tune2fs", "-O", "^has_journal", str(image)])
    await tool(image, ["tune2fs", "-J", f"size={size_mib}", str(image)])


async def listed(image: Path, directory: str) -> dict[str, Entry]:
    """What is in ``directory`` of ``image``, a path of plain characters; empty if there is no such directory.

    Names with a slash or a line's end, which no sound file system has, are left out.
    """
    done = await tool(image, ["debugfs", "-R", f"ls -p {directory}", str(image)], check=False)
    rows = _ROW.findall(done.stdout.decode(errors="surrogateescape"))
    return {
        name: Entry(name, int(inode), int(mode, 8), int(uid), int(size or 0))
        for inode, mode, uid, _, name, size in rows
        if name not in {".", ".."} and int(inode)
    }


async def edit(image: Path, commands: Sequence[str], *, cwd: Path | None = None) -> None:
    """Run ``commands`` of debugfs on ``image``, whose journal must be empty. What one of them refuses (such a file is not there) is passed over.

    What they write has the time of all in an image, so that equal inputs give equal bytes.
    """
    if commands:
        script = "".join(f"{command}\n" for command in commands).encode()
        await tool(
            image, ["debugfs", "-w", "-f", "-", str(image)], given=script, cwd=cwd, env=_TIME
        )


async def journal_bytes(image: Path) -> int:
    """The size of the journal; 0 if there is none."""
    done = await tool(image, ["dumpe2fs", "-h", str(image)], check=False)
    found = _JOURNAL.search(done.stdout)
    if found is None:
        return 0
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return int(number) * _UNITS[unit]
