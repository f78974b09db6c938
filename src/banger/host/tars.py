"""Read a tar stream that somebody else made: in order, with bounded headers, and to its real end."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO, Any, Final, Self, cast

from banger.model.compat import override
from banger.model.errors import BangerError

MAX_HEADER_BYTES: Final = 1 << 20
_MOST_ENDS: Final = 8  # a whole archive's is met twice or so
_LONG_HEADERS: Final = frozenset(
    {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
)  # fmt: skip
_NO_HEADER: Final = (
    tarfile.InvalidHeaderError,  # type: ignore[attr-defined]  # not in typeshed
    tarfile.TruncatedHeaderError,  # type: ignore[attr-defined]
    tarfile.EmptyHeaderError,  # type: ignore[attr-defined]
)


class ArchiveError(BangerError):
    """The archive is not one that banger unpacks."""

    next_step = "make or get the archive again"


class _Member(tarfile.TarInfo):
    """A header whose extensions are bounded before they are read into memory.

    Where there is none, nor the zeros of an archive's end, tarfile would end silently: this is an error, and so are numbers that are
    none, which leave tarfile as they are.
    """

    @classmethod
    @override
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            member = super().fromtarfile(archive)
            int(member.mtime)  # an extended header may say inf or nan
        except (*_NO_HEADER, ValueError, OverflowError, RecursionError) as error:
            raise tarfile.ReadError(f"{error} at byte {archive.offset}") from None
        return member

    def _proc_member(self, archive: tarfile.TarFile) -> Any:  # noqa: ANN401  tarfile's own hook
        if self.type in _LONG_HEADERS and self.size > MAX_HEADER_BYTES:
            raise ArchiveError(f"a header in the archive has {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]  # not in typeshed


class _Ending:
    """A stream at whose end reading on is an error: tarfile passes over data by reading, for as long as a header says that there is some."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._ends = 0

    def read(self, count: int) -> bytes:
        data = self._source.read(count)
        self._ends += not data
        if self._ends > _MOST_ENDS:
            raise tarfile.ReadError("unexpected end of data")
        return data


def open_stream(source: IO[bytes]) -> tarfile.TarFile:
    """A tar stream for reading in order; ArchiveError if it does not begin as one."""
    try:
        ending = cast("IO[bytes]", _Ending(source))
        return tarfile.open(fileobj=ending, mode="r|", tarinfo=_Member, errorlevel=2)
    except tarfile.TarError as error:
        raise ArchiveError("what came is no tar archive", detail=str(error)) from error


def open_file(source: IO[bytes]) -> tarfile.TarFile:
    """As `open_stream`, of an uncompressed tar in a file that can seek: data is passed over, not read."""
    try:
        return tarfile.open(fileobj=source, mode="r:", tarinfo=_Member, errorlevel=2)
    except tarfile.TarError as error:
        raise ArchiveError("what came is no tar archive", detail=str(error)) from error


def members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members in order, none kept in memory; ArchiveError where the stream is damaged."""
    try:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # not in typeshed
            yield member
    except tarfile.TarError as error:
        raise ArchiveError("the archive is damaged", detail=str(error)) from error


def peek(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The first member, so that a caller can look before it unpacks; None for an empty archive."""
    return next(members(archive), None)
