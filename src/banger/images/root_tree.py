"""A root file system out of layers, as a list of what is where: pure, no file is touched.

The rules are those of the OCI image specification ("Image Layer Filesystem Changeset"): a later entry replaces an earlier one, a
directory over a directory keeps what is in it, ``.wh.NAME`` hides NAME of the layers below and ``.wh..wh..opq`` all that they had in
its directory. A member's parents may be symlinks of a layer below: they are followed within the root, as container engines do. In the
result every path's parents are directories, so whoever writes it out passes no symlink.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from banger.images.layers import MAX_DEPTH, Member, Path
from banger.model.errors import InvalidInputError

WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"
_MAX_LINKS = 40  # as the kernel follows
_ROOT = Member(-1, (), "directory")


@dataclass(slots=True, eq=False)
class Inode:
    """What one or more names stand for: ``member`` of layer number ``layer``."""

    member: Member
    layer: int


@dataclass(slots=True, eq=False)
class Node:
    """A name: ``layer`` is the one that set it; ``children`` is None unless it is a directory."""

    inode: Inode
    layer: int
    children: dict[str, Node] | None = None


class _LostError(Exception):
    """A path goes through something that is no directory, or through too many symlinks."""


class RootTree:
    """Begins empty; `apply` puts layers over it, in order."""

    def __init__(self) -> None:
        self.root = Node(Inode(_ROOT, -1), -1, {})

    def apply(
        self, layer: int, members: Iterable[Member], what: str, *, whiteouts: bool = True
    ) -> None:
        """Put the ``members`` of a layer over the tree. Its whiteouts are about the layers below, wherever they stand in it."""
        added = []
        for member in members:
            name = member.path[-1] if member.path else ""
            if whiteouts and name.startswith(WHITEOUT):
                self._hide(member.path)
            else:
                added.append(member)
        for member in added:
            try:
                self._add(layer, member)
            except _LostError as error:
                raise InvalidInputError(
                    f"{what} holds {'/'.join(member.path)[:200]!r}, which cannot be placed",
                    detail=str(error),
                    hint="make the archive again; look at it with: tar -tvf FILE",
                ) from None

    def look(self, path: str, *, follow: bool = True) -> Node | None:
        """What is at ``path``, following symlinks within the root (the last one only if ``follow``)."""
        parts = tuple(part for part in path.split("/") if part)
        try:
            return self._walk(parts, follow=follow)
        except _LostError:
            return None

    def real_path(self, path: str) -> Path:
        """Where a file that is put at ``path`` comes to lie; of what cannot be followed, the path itself."""
        parts = tuple(part for part in path.split("/") if part)
        try:
            return (*self._resolve(parts[:-1]), parts[-1])
        except _LostError:
            return parts

    def entries(self) -> Iterator[tuple[Path, Node]]:
        """All paths with what they are, directories before what is in them, names in order."""
        stack: list[tuple[Path, Node]] = [((), self.root)]
        while stack:
            path, node = stack.pop()
            yield path, node
            below = sorted((node.children or {}).items(), reverse=True)
            stack.extend(((*path, name), child) for name, child in below)

    def _add(self, layer: int, member: Member) -> None:
        if not member.path:
            if member.kind == "directory":
                self.root.inode = Inode(member, layer)
            return
        parent = self._parent(layer, member.path[:-1])
        name = member.path[-1]
        siblings = _children(parent)
        if member.kind == "link":
            found = self._walk(member.link, follow=False)
            if found is None or found.children is not None:
                raise _LostError(f"a hard link to {'/'.join(member.link)[:200]!r}, which is no file")  # fmt: skip
            siblings[name] = Node(found.inode, layer)
            return
        before = siblings.get(name)
        children: dict[str, Node] | None = None
        if member.kind == "directory":
            children = before.children if before and before.children is not None else {}
        siblings[name] = Node(Inode(member, layer), layer, children)

    def _parent(self, layer: int, path: Path) -> Node:
        """The directory ``path``, made where it is missing."""
        node = self.root
        for name in self._resolve(path):
            siblings = _children(node)
            if name not in siblings:
                siblings[name] = Node(Inode(_ROOT, layer), layer, {})
            node = siblings[name]
        if node.children is None:
            raise _LostError("a file is in the place of its directory")
        return node

    def _hide(self, path: Path) -> None:
        try:
            parent = self._walk(path[:-1], follow=True)
        except _LostError:
            return
        if parent is None or parent.children is None:
            return
        if path[-1] == OPAQUE:
            parent.children.clear()
        elif not path[-1].startswith(WHITEOUT * 2):  # what AUFS kept for itself
            parent.children.pop(path[-1].removeprefix(WHITEOUT), None)

    def _walk(self, path: Path, *, follow: bool) -> Node | None:
        if not path:
            return self.root
        real = self._resolve(path) if follow else (*self._resolve(path[:-1]), path[-1])
        node: Node | None = self.root
        for name in real:
            if node is None or node.children is None:
                return None
            node = node.children.get(name)
        return node

    def _resolve(self, path: Path) -> Path:
        """``path`` without symlinks, as far as it is there; ``..`` of symlinks ends at the root."""
        todo = list(reversed(path))
        done: list[tuple[str, Node | None]] = []
        links = 0
        while todo:
            name = todo.pop()
            if name == "..":
                if done:
                    done.pop()
                continue
            node = done[-1][1] if done else self.root
            below = node.children.get(name) if node is not None and node.children else None
            if below is not None and below.inode.member.kind == "symlink":
                links += 1
                if links > _MAX_LINKS:
                    raise _LostError("too many symlinks")
                target = below.inode.member.target
                if target.startswith("/"):
                    done.clear()
                todo.extend(reversed([part for part in target.split("/") if part not in {"", "."}]))
                continue
            done.append((name, below))
            if len(done) + len(todo) > 2 * MAX_DEPTH:
                raise _LostError("too many directories")
        if len(done) > MAX_DEPTH:
            raise _LostError("too many directories")
        return tuple(name for name, _ in done)


def _children(node: Node) -> dict[str, Node]:
    if node.children is None:
        raise _LostError("a file is in the place of its directory")
    return node.children
