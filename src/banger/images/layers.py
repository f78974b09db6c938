"""One layer: a tar that somebody else made, as a list of members, and the data of those that are wanted.

Names are checked here, so that nobody behind this ever sees ``..``: a name is a tuple of components below the root. Devices are left
out (a guest has its own), and so are extended attributes.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Final, Literal, cast

from banger.host import fs, tars
from banger.images.plain import DAMAGED, Counted, open_plain
from banger.model.compat import override
from banger.model.errors import InvalidInputError

Kind = Literal["file", "directory", "symlink", "fifo", "link"]
Path = tuple[str, ...]
MAX_MEMBERS: Final = 500_000
MAX_LAYERS: Final = 500
MAX_ROOT_BYTES: Final = 64 << 30
MAX_DEPTH, _MAX_PATH_BYTES, _MAX_NAME_BYTES = 250, 2000, 255
_MAX_READ_BYTES, _READ_COST_BYTES = (
    32 << 20,
    1024,
)  # what is kept in memory, and the least that a file counts for
_MAX_TARGET_BYTES: Final = 4095  # as a block of ext4 holds
_HEADER_BYTES: Final = 4 << 20
_MOST_ID, _NOBODY = 65535, 65534
_MOST_TIME_S: Final = 1 << 33
_MAKE_AGAIN: Final = "make the archive again; look at it with: tar -tvf FILE"
_KINDS: Final[dict[bytes, Kind]] = {
    tarfile.REGTYPE: "file", tarfile.AREGTYPE: "file", tarfile.CONTTYPE: "file", tarfile.GNUTYPE_SPARSE: "file",
    tarfile.DIRTYPE: "directory", tarfile.SYMTYPE: "symlink", tarfile.FIFOTYPE: "fifo", tarfile.LNKTYPE: "link",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Member:
    """``number`` counts the members of the layer; ``target`` is a symlink's text; ``link`` the path that a hard link names."""

    number: int
    path: Path
    kind: Kind
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    size_bytes: int = 0
    target: str = ""
    link: Path = ()


@dataclass(slots=True)
class LeftOut:
    """What of an archive does not come into the image: numbers of devices, and of owners that were given to nobody."""

    devices: int = 0
    owners: int = 0

    @override
    def __str__(self) -> str:
        words = []
        if self.devices:
            words.append(f"{self.devices} devices left out")
        if self.owners:
            words.append(f"{self.owners} owners over {_MOST_ID} are nobody")
        return ", ".join(words)


@dataclass(slots=True)
class Budget:
    """What all layers of an image may have together."""

    members: int = MAX_MEMBERS
    bytes_left: int = MAX_ROOT_BYTES
    read_bytes_left: int = _MAX_READ_BYTES
    left_out: LeftOut = field(default_factory=LeftOut)

    def read(self, size_bytes: int, what: str) -> None:
        """Count a file that is kept in memory; InvalidInputError if there are too many."""
        self.read_bytes_left -= max(size_bytes, _READ_COST_BYTES)
        if self.read_bytes_left < 0:
            raise InvalidInputError(
                f"{what} holds too many files of configuration",
                detail="of etc/passwd, etc/ssh and the like, over and over",
                hint=_MAKE_AGAIN,
            )


def split_path(name: str, what: str) -> Path:
    """The components of ``name``, whose leading slash is the root's; InvalidInputError if it leaves the root or is too long."""
    parts = tuple(part for part in name.split("/") if part not in {"", "."})
    encoded = name.encode(errors="surrogateescape")
    longest = max((len(part.encode(errors="surrogateescape")) for part in parts), default=0)
    if ".." in parts:
        raise InvalidInputError(
            f"{what} holds {name[:200]!r}, which leaves the root", hint=_MAKE_AGAIN
        )
    if (
        len(encoded) > _MAX_PATH_BYTES
        or len(parts) > MAX_DEPTH
        or longest > _MAX_NAME_BYTES
        or "\0" in name
    ):
        raise InvalidInputError(
            f"{what} holds a path that is too long: {name[:80]!r}…",
            detail=f"at most {_MAX_PATH_BYTES} bytes, {MAX_DEPTH} directories and {_MAX_NAME_BYTES} bytes a name",
            hint=_MAKE_AGAIN,
        )
    return parts


@contextmanager
def damage_told(what: str) -> Iterator[None]:
    """Whatever a library says of bytes that are not what they should be, as InvalidInputError."""
    try:
        yield
    except (tars.ArchiveError, tarfile.TarError, RecursionError, ValueError, *DAMAGED) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the host's, not the archive's
        said = f"{error} {getattr(error, 'detail', '')}".strip()
        raise InvalidInputError(
            f"{what} is damaged or no tar archive", detail=said, hint="get the file again"
        ) from error


class Layer:
    """A tar that is read in order, once; ``stream`` says afterwards how long it was, and its digest."""

    def __init__(
        self,
        source: IO[bytes],
        head: bytes,
        what: str,
        budget: Budget,
        *,
        between: fs.Between = fs.go_on,
    ) -> None:
        self.what = what
        self._budget = budget
        with damage_told(what):
            plain = open_plain(source, head)
            self.stream = Counted(plain, max(budget.bytes_left, 0) + (64 << 20), what, between=between)  # fmt: skip
            self.stream.budget_bytes = _HEADER_BYTES
            self._tar = tars.open_stream(cast("IO[bytes]", self.stream))

    def raw(self) -> Iterator[tuple[int, tarfile.TarInfo]]:
        """Every member with its number; what it needs no data of is skipped."""
        number = 0
        while True:
            with damage_told(self.what):
                self.stream.budget_bytes = _HEADER_BYTES
                info = self._tar.next()
                self.stream.budget_bytes = None
            if info is None:
                break
            self._tar.members.clear()  # type: ignore[attr-defined]  # not in typeshed
            yield number, info
            with damage_told(self.what):  # else headers and data are not told apart
                self._tar.fileobj.seek(self._tar.offset)
            number += 1
        with damage_told(self.what):
            self.stream.drain()

    def members(self) -> Iterator[tuple[Member, tarfile.TarInfo]]:
        """What the layer holds, checked and counted."""
        for number, info in self.raw():
            self._budget.members -= 1
            if self._budget.members < 0:
                raise InvalidInputError(
                    f"{self.what} brings the image over {MAX_MEMBERS} files",
                    hint="import something smaller",
                )
            if info.ischr() or info.isblk():
                split_path(info.name, self.what)
                self._budget.left_out.devices += 1
                continue
            yield self._checked(number, info), info
        self._budget.bytes_left -= self.stream.count_bytes

    def _checked(self, number: int, info: tarfile.TarInfo) -> Member:
        kind = _KINDS.get(info.type)
        if kind is None:
            raise InvalidInputError(
                f"{self.what} holds {info.name[:200]!r} of an unknown type {info.type!r}",
                hint=_MAKE_AGAIN,
            )
        path = split_path(info.name, self.what)
        if kind == "file":
            if not 0 <= info.size <= MAX_ROOT_BYTES:
                raise InvalidInputError(
                    f"{self.what} holds {info.name[:200]!r} with a size of {info.size} bytes",
                    hint="import something smaller",
                )
            if info.sparse is not None:
                self._budget.bytes_left -= info.size  # its holes take none of the stream
        target = info.linkname.encode(errors="surrogateescape")
        if kind == "symlink" and not (0 < len(target) <= _MAX_TARGET_BYTES and b"\0" not in target):
            raise InvalidInputError(
                f"{self.what} holds a symlink {info.name[:200]!r} to nothing that can be",
                hint=_MAKE_AGAIN,
            )
        return Member(
            number, path, kind, info.mode & 0o7777, self._owner(info.uid), self._owner(info.gid),
            min(max(int(info.mtime), 0), _MOST_TIME_S), info.size if kind == "file" else 0,
            info.linkname if kind == "symlink" else "",
            split_path(info.linkname, self.what) if kind == "link" else (),
        )  # fmt: skip

    def _owner(self, number: int) -> int:
        """An id that the namespace of an ordinary user has."""
        if 0 <= number <= _MOST_ID:
            return number
        self._budget.left_out.owners += 1
        return _NOBODY

    def data(self, info: tarfile.TarInfo) -> IO[bytes]:
        """The content of the file that `raw` has just yielded."""
        found = self._tar.extractfile(info)
        if found is None:
            raise InvalidInputError(f"{self.what} changed while it was read", hint="try again")
        return found
