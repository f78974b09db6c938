"""Layers to one root file system: every layer is read twice, first for its names, then for the data of what was not replaced.

What is written in between is a tar without surprises: every parent a directory, hard links behind what they link to, symlinks last.
Both readings are held to the digests, so nobody profits from changing the file in the meantime.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, cast

from banger.host import fs
from banger.images.boxes import HEAD_BYTES, open_regular
from banger.images.inject import READ, READ_BELOW
from banger.images.layers import Budget, Layer, Member, damage_told
from banger.images.layers import Path as Parts
from banger.images.oci import Box, LayerFile
from banger.images.plain import Counted
from banger.images.root_tree import Inode, RootTree
from banger.model.compat import override
from banger.model.errors import InvalidInputError

_MAX_CONTENT_BYTES: Final = 1 << 20
_MAX_LAYER_FILE_BYTES: Final = 64 << 30
_BLOCK_BYTES: Final = 4096
_READ: Final = {tuple(path.split("/")) for path in READ}
_READ_BELOW: Final = {tuple(path.split("/")) for path in READ_BELOW}


@dataclass(frozen=True, slots=True)
class Source:
    """A layer that can be opened again and again. ``whiteouts`` says whether it is one of a container image."""

    file: LayerFile
    open: Callable[[], tuple[IO[bytes], int]]
    whiteouts: bool = True


def from_box(box: Box, layers: Sequence[LayerFile]) -> list[Source]:
    """The layers of an image in ``box``."""
    return [Source(layer, lambda layer=layer: box.open(layer.name)) for layer in layers]  # type: ignore[misc]


def from_file(path: Path, what: str, *, whiteouts: bool = False) -> Source:
    """A tar of its own."""

    def open_it() -> tuple[IO[bytes], int]:
        return open_regular(path, "file"), path.stat().st_size

    return Source(LayerFile(str(path), what), open_it, whiteouts)


class _Opened:
    """A layer while it is read; `check` says at its end whether it was what its digests say."""

    def __init__(self, source: Source, budget: Budget, between: fs.Between) -> None:
        self._file = source.file
        raw, self._size = source.open()
        self._raw = raw
        head = raw.read(HEAD_BYTES)
        raw.seek(0) if raw.seekable() else None
        stream = raw if raw.seekable() else cast("IO[bytes]", _Rejoined(head, raw))
        self._stored = Counted(stream, _MAX_LAYER_FILE_BYTES, source.file.what)
        stored = cast("IO[bytes]", io.BufferedReader(self._stored, 1 << 20))
        try:
            self.layer = Layer(stored, head, source.file.what, budget, between=between)
        except BaseException:
            raw.close()
            raise

    def check(self) -> None:
        with damage_told(self._file.what):
            self._stored.drain()
        wanted, found = self._file.digest, self._stored.digest
        for is_wrong in (
            self._file.size_bytes is not None and self._file.size_bytes != self._stored.count_bytes,
            wanted is not None and wanted != found,
            self._file.diff_id is not None and self._file.diff_id != self.layer.stream.digest,
        ):
            if is_wrong:
                raise InvalidInputError(
                    f"{self._file.what} is not what its digest says",
                    detail=f"it has {self._stored.count_bytes} bytes, SHA-256 {found}",
                    hint="get the file again",
                )

    def close(self) -> None:
        self._raw.close()


class _Rejoined(io.RawIOBase):
    """What was read of a stream already, and the rest of it."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self._head, self._rest = head, rest

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        data, self._head = self._head[: len(view)], self._head[len(view) :]
        data = data or self._rest.read(len(view))
        view[: len(data)] = data
        return len(data)


def scan(
    source: Source,
    number: int,
    tree: RootTree,
    contents: dict[tuple[int, int], bytes],
    budget: Budget,
    *,
    between: fs.Between = fs.go_on,
) -> None:
    """Put layer ``number`` over ``tree``; the data of the files that `inject` changes goes into ``contents``, by layer and member."""
    opened = _Opened(source, budget, between)
    try:
        members = []
        for member, info in opened.layer.members():
            if _is_read(member):
                budget.read(member.size_bytes, source.file.what)
                with damage_told(source.file.what):
                    contents[number, member.number] = opened.layer.data(info).read()
            members.append(member)
        opened.check()
        tree.apply(number, members, source.file.what, whiteouts=source.whiteouts)
    finally:
        opened.close()


def _is_read(member: Member) -> bool:
    wanted = member.path in _READ or member.path[:-1] in _READ_BELOW
    return wanted and member.kind == "file" and member.size_bytes <= _MAX_CONTENT_BYTES


def read_contents(tree: RootTree, contents: dict[tuple[int, int], bytes]) -> dict[str, bytes]:
    """The files of `READ`, and in the directories of `READ_BELOW`, that ``tree`` has after all layers."""
    found = {}
    paths = list(READ)
    for directory in READ_BELOW:
        node = tree.look(f"/{directory}")
        names = sorted(node.children or ()) if node is not None else []
        paths += [f"{directory}/{name}" for name in names]
    for path in paths:
        node = tree.look(f"/{path}", follow=False)
        if node is not None:
            data = contents.get((node.inode.layer, node.inode.member.number))
            if data is not None:
                found[path] = data
    return found


def measure(tree: RootTree) -> tuple[int, int]:
    """How many bytes of blocks the files of ``tree`` take, holes filled, and how many names there are."""
    size_bytes, names, seen = 0, 0, set()
    for _, node in tree.entries():
        names += 1
        if id(node.inode) not in seen:
            seen.add(id(node.inode))
            size_bytes += -(-node.inode.member.size_bytes // _BLOCK_BYTES) * _BLOCK_BYTES
            size_bytes += _BLOCK_BYTES if node.children is not None else 0
    return size_bytes, names


def write_tar(
    tree: RootTree, sources: Sequence[Source], target: Path, *, between: fs.Between = fs.go_on
) -> None:
    """Write what ``tree`` came to as the new file ``target``; its layer numbers count ``sources``."""
    wanted: dict[int, dict[int, list[Parts]]] = {}
    late: list[tuple[Parts, Inode]] = []
    with target.open("xb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:  # fmt: skip
        for path, node in tree.entries():
            inode = node.inode
            if node.children is not None:
                tar.addfile(_info(path, inode, tarfile.DIRTYPE))
            elif inode.member.kind == "file":
                wanted.setdefault(inode.layer, {}).setdefault(inode.member.number, []).append(path)
            else:
                late.append((path, inode))
        for number, source in enumerate(sources):
            if number in wanted:
                _write_files(tar, source, number, wanted[number], between)
        for path, inode in late:
            tar.addfile(_info(path, inode, tarfile.SYMTYPE if inode.member.kind == "symlink" else tarfile.FIFOTYPE))  # fmt: skip


def _write_files(
    tar: tarfile.TarFile,
    source: Source,
    number: int,
    wanted: dict[int, list[Parts]],
    between: fs.Between,
) -> None:
    opened = _Opened(source, Budget(), between)
    links: list[tuple[Parts, Parts]] = []
    try:
        for member, info in opened.layer.members():
            paths = wanted.get(member.number)
            if paths is None:
                continue
            first, *others = paths
            with damage_told(source.file.what):
                tar.addfile(_info(first, Inode(member, number), tarfile.REGTYPE), opened.layer.data(info))  # fmt: skip
            tar.members.clear()  # type: ignore[attr-defined]  # not in typeshed
            links += [(other, first) for other in others]
        opened.check()
    finally:
        opened.close()
    for path, first in links:
        link = tarfile.TarInfo(_name(path))
        link.type, link.linkname = tarfile.LNKTYPE, _name(first)
        tar.addfile(link)


def _name(path: Parts) -> str:
    return "/".join((".", *path))


def _info(path: Parts, inode: Inode, kind: bytes) -> tarfile.TarInfo:
    member = inode.member
    info = tarfile.TarInfo(_name(path))
    info.type, info.mode, info.mtime = kind, member.mode, member.mtime
    info.uid, info.gid = member.uid, member.gid
    info.size = member.size_bytes if kind == tarfile.REGTYPE else 0
    info.linkname = member.target
    return info
