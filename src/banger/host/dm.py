"""Mappings of the device mapper, by dmsetup(8). For root.

A mapping's *uuid* says whose it is: names can be anybody's. Who asks what is there asks dmsetup: one whose maker was killed before it had a table
is in no directory of /sys, and has its name all the same.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from banger.host.exec import Completed, failure, find_program, run
from banger.model.clock import Deadline
from banger.model.errors import CommandFailedError, HostLacksError

PACKAGE: Final = "dmsetup"
SECTOR_BYTES: Final = 512
CHUNK_SECTORS: Final = 8  # 4 KiB, a guest's page and block: nothing is copied that is not changed
REMOVE_S: Final = 10.0
_TOOL_S: Final = 15.0
_LOOK_AGAIN_S: Final = 0.02
_SYS: Final = Path("/sys/block")
_UDEV: Final = Path("/run/udev/control")


@dataclass(frozen=True, slots=True)
class Mapping:
    """A mapping that is there; ``number`` is N of its device /dev/dm-N."""

    name: str
    uuid: str
    number: int


@dataclass(frozen=True, slots=True)
class SnapshotStatus:
    """What a snapshot of ``disk_bytes`` says of its store; ``broken`` is the kernel's word (``Invalid``, ``Overflow``) if it is lost."""

    used_bytes: int = 0
    size_bytes: int = 0
    broken: str = ""
    disk_bytes: int = 0


def linear_then_zeros(device: Path, sectors: int, total_sectors: int) -> str:
    """The table of ``device`` with zeros behind it."""
    rest = total_sectors - sectors
    return f"0 {sectors} linear {device} 0\n{sectors} {rest} zero\n"


def snapshot(origin: Path, store: Path, sectors: int) -> str:
    """The table of a snapshot of ``origin`` that outlives the host's restart (P) and keeps what changes in ``store``."""
    return f"0 {sectors} snapshot {origin} {store} P {CHUNK_SECTORS}\n"


def parse_status(text: str) -> dict[str, SnapshotStatus]:
    """The output of ``dmsetup status --target snapshot`` by name (Documentation/admin-guide/device-mapper/snapshot.rst)."""
    found = {}
    for line in text.splitlines():
        name, colon, rest = line.partition(": ")
        words = rest.split()
        if not colon or len(words) < 4 or words[2] != "snapshot" or not words[1].isdigit():
            continue
        used, slash, size = words[3].partition("/")
        disk_bytes = int(words[1]) * SECTOR_BYTES
        if slash and used.isdigit() and size.isdigit():
            used_bytes, size_bytes = int(used) * SECTOR_BYTES, int(size) * SECTOR_BYTES
            found[name] = SnapshotStatus(used_bytes, size_bytes, disk_bytes=disk_bytes)
        else:
            found[name] = SnapshotStatus(broken=" ".join(words[3:]), disk_bytes=disk_bytes)
    return found


def store_limit_bytes(size_bytes: int) -> int:
    """How large the store of a snapshot of ``size_bytes`` can become: every chunk changed, a table of 16 bytes a chunk, a header."""
    chunk = CHUNK_SECTORS * SECTOR_BYTES
    chunks = -(-size_bytes // chunk)
    tables = chunks // (chunk // 16) + 1
    return (1 + tables + 1 + chunks) * chunk


def parse_mappings(text: str) -> list[Mapping]:
    """The output of `mappings`' dmsetup: number, uuid and name, one mapping a line."""
    found = []
    for line in text.splitlines():
        number, _, rest = line.partition("|")
        uuid, bar, name = rest.partition("|")
        if bar and number.isdigit():
            found.append(Mapping(name, uuid, int(number)))
    return sorted(found, key=lambda mapping: mapping.number)


def is_there() -> bool:
    """Whether this kernel has a device mapper at all, and we may use it."""
    try:
        os.close(os.open("/dev/mapper/control", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


async def mappings() -> list[Mapping]:
    """All that are there."""
    words = [
        "info",
        "--columns",
        "--noheadings",
        "--separator",
        "|",
        "--options",
        "minor,uuid,name",
    ]
    done = await _dmsetup(words)
    return parse_mappings(done.stdout.decode(errors="replace"))


async def find(name: str) -> Mapping | None:
    """The mapping called ``name``."""
    return next((mapping for mapping in await mappings() if mapping.name == name), None)


def below(mapping: Mapping) -> list[Path]:
    """The devices that it is made of."""
    slaves = _SYS / f"dm-{mapping.number}" / "slaves"
    with suppress(FileNotFoundError):
        return [Path("/dev") / name for name in sorted(path.name for path in slaves.iterdir())]
    return []


async def create(name: str, uuid: str, lines: str, *, read_only: bool = False) -> Path:
    """Make a mapping; its block device. CommandFailedError if that fails; the inverse is `remove`, whatever came of it."""
    udev = [] if _UDEV.exists() else ["--noudevsync"]
    words = ["create", name, "--uuid", uuid, *udev, *(["--readonly"] if read_only else [])]
    await _dmsetup(words, lines=lines)
    number = _number_in_sys(name)
    if number is None:
        raise HostLacksError(
            f"device {name} was made and is gone", hint="sudo dmesg | grep device-mapper"
        )
    return await _device(Mapping(name, uuid, number))


def _number_in_sys(name: str) -> int | None:
    """N of the device /dev/dm-N of a mapping that has a table: that costs no process."""
    for file in _SYS.glob("dm-*/dm/name"):
        with suppress(OSError):  # gone meanwhile
            if file.read_text().strip() == name:
                return int(file.parts[-3].removeprefix("dm-"))
    return None


async def _device(mapping: Mapping) -> Path:
    """The node of ``mapping``: the kernel's, else where dmsetup makes it."""
    kernels, own = Path(f"/dev/dm-{mapping.number}"), Path("/dev/mapper") / mapping.name
    number = (_SYS / f"dm-{mapping.number}" / "dev").read_text().strip()
    for attempt in range(2):
        for path in (kernels, own):
            if _is_node(path, number):
                return path.resolve()
        if attempt == 0:
            await _dmsetup(["mknodes", mapping.name])
    raise HostLacksError(
        f"device {mapping.name} has no node in /dev",
        detail=f"neither {kernels} nor {own} is block device {number}",
        hint="sudo dmsetup mknodes",
    )


def give(mapping: Mapping, uid: int) -> None:
    """Its node belongs to ``uid`` alone; the inverse is `take_back`. The kernel does that too when the device goes: on devtmpfs a node
    that it removes is root's before, wherever else it is still to be seen.
    """
    for path in _nodes(mapping):
        os.chown(path, uid, 0)
        path.chmod(0o600)


def take_back(mapping: Mapping) -> None:
    """Nobody but root may open its node from now on; idempotent."""
    for path in _nodes(mapping):
        os.chown(path, 0, 0)
        path.chmod(0o600)


def _nodes(mapping: Mapping) -> list[Path]:
    with suppress(FileNotFoundError):
        number = (_SYS / f"dm-{mapping.number}" / "dev").read_text().strip()
        places = {Path(f"/dev/dm-{mapping.number}"), (Path("/dev/mapper") / mapping.name).resolve()}
        return [path for path in places if _is_node(path, number)]
    return []


def _is_node(path: Path, number: str) -> bool:
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    real = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    return stat.S_ISBLK(found.st_mode) and real == number


async def remove(uuid: str, *, timeout_s: float = REMOVE_S) -> None:
    """Remove the mapping of this uuid. One that is gone is success; one that is busy is tried again until ``timeout_s``."""
    deadline = Deadline.after(timeout_s)
    udev = [] if _UDEV.exists() else ["--noudevsync"]
    while True:
        done = await _run(["remove", *udev, "--uuid", uuid], "")
        if done.returncode == 0:
            return
        there = next((mapping for mapping in await mappings() if mapping.uuid == uuid), None)
        if there is None:
            return
        if b"busy" not in done.stderr.lower() or deadline.passed:
            raise failure(done, hint=f"sudo dmsetup info {there.name}")
        await asyncio.sleep(_LOOK_AGAIN_S)


async def statuses() -> dict[str, SnapshotStatus]:
    """Of all snapshots on this host, by name."""
    done = await _dmsetup(["status", "--target", "snapshot"])
    return parse_status(done.stdout.decode(errors="replace"))


async def table(name: str) -> str:
    """The table of mapping ``name`` as the kernel has it, one target a line."""
    return (await _dmsetup(["table", name])).stdout.decode(errors="replace").strip()


async def _dmsetup(words: Sequence[str], *, lines: str = "") -> Completed:
    done = await _run(words, lines)
    if done.returncode != 0:
        raise failure(done, hint="sudo dmesg | grep device-mapper")
    return done


async def _run(words: Sequence[str], lines: str) -> Completed:
    argv = [find_program("dmsetup", package=PACKAGE), *words]
    data = lines.encode() or None
    try:
        return await run(argv, timeout_s=_TOOL_S, check=False, input=data)
    except CommandFailedError as error:
        error.hint = "sudo dmsetup info"
        raise
