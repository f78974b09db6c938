"""Get a bundle to its place: from the manifest's URLs, an archive, or a directory; verified first, switched to at once.

On any failure what was current stays so, unless the new version is that already, and nothing but a download's first part is left. On a
full disk not even that. Trace points: ``runtime.fetch.<step>.before`` and ``.after``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Final

from banger.bundle import check, elf, place, unpack
from banger.bundle.check import BundleState
from banger.bundle.manifest import Manifest
from banger.bundle.places import Root
from banger.bundle.report import Reporter, host_errors, is_full, no_space
from banger.host import faults, fs
from banger.host.tars import ArchiveError
from banger.model.clock import Deadline
from banger.model.errors import HostLacksError, NotFoundError, RefusedError
from banger.model.units import MIB, format_size

RESERVE_BYTES: Final = 4 * MIB
FETCH_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What to fetch: ``source`` (an archive or a directory) instead of the manifest's URLs, ``force`` even
    if it is there already; ``command`` is what a message tells to run again.
    """

    manifest: Manifest
    source: Path | None = None
    force: bool = False
    timeout_s: float = FETCH_S
    command: str = "banger runtime fetch"


def fetch(root: Root, wish: Wish, reporter: Reporter) -> bool:
    """Make the wanted bundle `root`'s current one; False if it was already, and whole.

    Raises HostLacksError (nothing is pinned, no source works, no space, no permission), `ArchiveError` (the archive is not what
    the manifest says), RefusedError (another one writes).
    """
    manifest = wish.manifest
    _check_wish(wish)
    deadline = Deadline.after(wish.timeout_s)
    with (
        host_errors(root.path, wish.command),
        place.writing(root, reporter, wish.timeout_s),
    ):
        old = check.look(root)
        same = old.manifest is not None and old.manifest.identity() == manifest.identity()
        part = root.downloads / f"{manifest.sha256}.part"
        if same and old.state == "ok" and not wish.force:
            place.forget_download(root, part)  # its fetch was killed when all was done but this
            return False
        _check_space(root, wish, part)
        with _full_disk_keeps_no_part(root):
            version = _make(root, wish, part, deadline, reporter)
            with _step("switch"):
                place.switch(root, version, keep_old=old.state == "ok" and not same)
        reporter.done("place", str(version))
        with _step("prune"):
            place.prune(root)
        with _step("clear"):
            fs.remove_tree(root.downloads)
        return True


def _make(root: Root, wish: Wish, part: Path, deadline: Deadline, reporter: Reporter) -> Path:
    """The wanted version, complete and verified."""
    manifest = wish.manifest
    with place.staging(root) as made:
        if wish.source is not None and wish.source.is_dir():
            with _step("unpack"):
                advance = _Stage(reporter, "copy").advance
                unpack.from_directory(wish.source, manifest, made, advance)
        else:
            with _archive(root, wish, part, deadline, reporter) as archive, _step("unpack"):
                advance = _Stage(reporter, "unpack").advance
                unpack.from_archive(archive, manifest, made, advance)
        with _step("seal"):
            version = place.finish(root, made, manifest)
    reporter.done("unpack", f"{len(manifest.files)} files verified")
    return version


@contextmanager
def _step(name: str) -> Iterator[None]:
    """A step of a fetch, between its trace points."""
    faults.blocking_point(f"runtime.fetch.{name}.before")
    yield
    faults.blocking_point(f"runtime.fetch.{name}.after")


@contextmanager
def _full_disk_keeps_no_part(root: Root) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_full(error):  # others need the space as well
            fs.remove_tree(root.downloads)
        raise


def install(placed: BundleState, target: Root, reporter: Reporter) -> bool:
    """Make the bundle that is ``placed`` somewhere, and whole, the current one of another root; False if it was already."""
    if placed.manifest is None:
        raise RuntimeError("only a bundle that is whole is installed")
    wish = Wish(placed.manifest, placed.version_dir, command="banger runtime install")
    return fetch(target, wish, reporter)


def rollback(root: Root, reporter: Reporter, wait_s: float) -> Manifest:
    """Make the previous version current, and the current one the previous; the manifest of the one that is current now.

    RefusedError if there is none, HostLacksError if it is damaged.
    """
    nothing = RefusedError(
        f"there is no version before the one in {root.path}", hint="banger runtime status"
    )
    if root.target(root.previous) is None:
        raise nothing
    with (
        host_errors(root.path, "banger runtime rollback"),
        place.writing(root, reporter, wait_s),
    ):
        found = check.look(root, root.previous)
        if found.state == "missing":
            raise nothing
        if found.manifest is None or found.version_dir is None or found.state != "ok":
            raise HostLacksError(
                f"the version before the one in {root.path} is damaged",
                detail="\n".join(found.whys),
                hint="banger runtime fetch",
            )
        place.switch(root, found.version_dir, keep_old=True)
        return found.manifest


class _Stage:
    """Hands a stage's progress on."""

    def __init__(self, reporter: Reporter, name: str) -> None:
        self._reporter, self._name = reporter, name

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        self._reporter.advance(self._name, done_bytes, total_bytes)


def _check_wish(wish: Wish) -> None:
    manifest = wish.manifest
    if not manifest.pins_contents:
        raise HostLacksError(
            f"no {manifest.name} is pinned yet: the manifest has no digests of its files",
            detail="banger places nothing that it cannot verify",
            hint="banger runtime package DIRECTORY makes a bundle and its manifest from files that you trust",
        )
    if manifest.architecture != elf.host_architecture():
        raise HostLacksError(
            f"{manifest.title} is for {manifest.architecture}, this machine is {elf.host_architecture()}",
            hint="use the manifest of this architecture",
        )
    if wish.source is None and not (manifest.pins_archive and manifest.urls):
        raise HostLacksError(
            f"the manifest of {manifest.title} names no URL to have it from",
            hint="banger runtime fetch --from FILE",
        )
    if wish.source is not None and not (wish.source.is_file() or wish.source.is_dir()):
        raise NotFoundError(
            f"{wish.source} is neither a file nor a directory", hint=f"ls -l {wish.source.parent}"
        )


def _check_space(root: Root, wish: Wish, part: Path) -> None:
    """Refuse early and with numbers what cannot fit; what others write meanwhile is found out later."""
    need_bytes = wish.manifest.content_bytes + RESERVE_BYTES
    if wish.source is None:
        need_bytes += max(0, wish.manifest.size_bytes - fs.length_bytes(part))
    free_bytes = fs.free_bytes(root.path)
    if free_bytes < need_bytes:
        raise no_space(
            root.path,
            f"{wish.manifest.title} needs {format_size(need_bytes)}, {format_size(free_bytes)} are free",
        )


@contextmanager
def _archive(
    root: Root, wish: Wish, part: Path, deadline: Deadline, reporter: Reporter
) -> Iterator[BufferedReader]:
    """The verified archive, open."""
    if wish.source is not None:
        with _open_source(wish.source) as archive:
            _verify(archive, wish)
            yield archive
        return
    from banger.host.download import Wanted, download  # noqa: PLC0415  urllib is only for this

    manifest = wish.manifest
    place.make_public_dir(root.downloads)
    wanted = Wanted(
        manifest.urls, manifest.size_bytes, manifest.sha256, "the runtime bundle",
        hint="do it again, or use a copy: banger runtime fetch --from FILE",
    )  # fmt: skip
    try:
        with _step("download"):
            download(wanted, part, deadline, reporter)
        reporter.done("download", format_size(manifest.size_bytes))
        with part.open("rb") as archive:
            yield archive
    except ArchiveError:
        fs.remove_tree(root.downloads)  # the next try would get the same
        raise


def _open_source(source: Path) -> BufferedReader:
    try:
        return source.open("rb")
    except OSError as error:
        raise HostLacksError(
            f"{source} cannot be read", detail=error.strerror or "", hint=f"ls -l {source}"
        ) from error


def _verify(archive: BufferedReader, wish: Wish) -> None:
    """The archive's digest, where the manifest has one; without one the files' digests decide."""
    manifest = wish.manifest
    if not manifest.pins_archive:
        return
    size_bytes = os.fstat(archive.fileno()).st_size
    digest = hashlib.file_digest(archive, "sha256").hexdigest()
    archive.seek(0)
    if (size_bytes, digest) != (manifest.size_bytes, manifest.sha256):
        raise HostLacksError(
            f"{wish.source} is not the archive of {manifest.title}",
            detail=f"its SHA-256 is {digest}, it has {size_bytes} bytes\n"
            f"the manifest says {manifest.sha256} and {manifest.size_bytes} bytes",
            hint="copy it again, or give the manifest that belongs to it: --manifest FILE",
        )
