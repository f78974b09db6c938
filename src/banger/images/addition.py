"""A layer that banger puts over a foreign root: what is added, replaced and taken away, as one tar."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass, field

from banger.images.resources import payload_dir
from banger.images.root_tree import RootTree


@dataclass(slots=True)
class Addition:
    """The layer to be: ``files`` and ``modes`` by path, ``links``, ``directories``, and paths that are taken away."""

    files: dict[str, bytes] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    directories: dict[str, int] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add or replace a file."""
        self.files[path], self.modes[path] = data, mode

    def tar(self, epoch_s: int) -> bytes:
        """The layer; equal additions give equal bytes."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for path in sorted(self.removed):
                head, _, name = path.rpartition("/")
                archive.addfile(_info(f"{head}/.wh.{name}", epoch_s))
            for path, mode in sorted(self.directories.items()):
                archive.addfile(_info(path, epoch_s, kind=tarfile.DIRTYPE, mode=mode))
            for path, data in sorted(self.files.items()):
                info = _info(path, epoch_s, mode=self.modes[path])
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
            for path, target in sorted(self.links.items()):
                info = _info(path, epoch_s, kind=tarfile.SYMTYPE, mode=0o777)
                info.linkname = target
                archive.addfile(info)
        return buffer.getvalue()


def _info(path: str, epoch_s: int, *, kind: bytes = tarfile.REGTYPE, mode: int = 0o644) -> tarfile.TarInfo:  # fmt: skip
    info = tarfile.TarInfo(path)
    info.type, info.mode, info.mtime = kind, mode, epoch_s
    return info


def is_file(tree: RootTree, path: str) -> bool:
    """Whether a file is at ``path``, or a symlink to one."""
    node = tree.look(path)
    return node is not None and node.inode.member.kind == "file"


def payload(path: str) -> bytes:
    """A file that guests of banger's own builds have too."""
    return (payload_dir() / "rootfs" / path).read_bytes()
