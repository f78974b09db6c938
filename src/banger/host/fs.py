"""Files: atomic writes, sparse and reflink clones, removal, free space."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_DIGEST_BLOCK = 64 * 1024
_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
_CANNOT_SHARE = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS}
"""What the kernel says where two files cannot share blocks, or not be copied by it: other file systems, or an old one."""
_CANNOT_LINK = _CANNOT_SHARE | {errno.EPERM, errno.EMLINK}
_COPY_BLOCK = 1 << 20
_PIECE_BYTES = 64 << 20
_REMOVALS = 100
"""So often a tree is gone through again in which others make and remove files meanwhile."""
FULL = {errno.ENOSPC, errno.EDQUOT}
"""What the kernel says where a file cannot grow any more."""

Between = Callable[[], None]
"""Called between the pieces of a long work on a file; what it raises ends the work."""


def go_on() -> None:
    """The `Between` that never ends anything."""


TEMPORARY = ".banger-new-"
"""How names begin of what is there for a moment only, unless its maker was killed in it."""


@contextmanager
def temporary_directory(directory: Path) -> Iterator[Path]:
    """A private directory below ``directory``, removed at the end."""
    with tempfile.TemporaryDirectory(dir=directory, prefix=TEMPORARY) as name:
        yield Path(name)


def sweep_temporaries(directory: Path, older_s: float = 60.0) -> None:
    """Remove what makers that were killed left in ``directory`` longer than ``older_s`` ago; those at work need milliseconds."""
    now_s = time.time()  # noqa: TID251  compared with the file system's times
    for path in directory.glob(f"{TEMPORARY}*"):
        with suppress(FileNotFoundError):  # its maker lives, and has come to an end
            if now_s - path.lstat().st_mtime < older_s:
                continue
            remove_tree(path)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old or the new content, also after a power cut."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f"{TEMPORARY}{path.name}-")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def unseen_file(target: Path, *, replace: bool, mode: int = 0o644) -> Iterator[IO[bytes]]:
    """A file that is nowhere until the block has ended well; then it is ``target``. A power cut or `kill -9` leaves nothing.

    FileExistsError if ``target`` is there, unless it may be replaced; OSError where the file system has no files without a name.
    """
    if not replace and (target.exists() or target.is_symlink()):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    descriptor = os.open(target.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "w+b") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        opened = os.open("/proc/self/fd", os.O_RDONLY | os.O_CLOEXEC)
        try:  # with a directory's descriptor, else Python calls link(2), which takes the symlink for the file
            if not replace:
                os.link(str(file.fileno()), target, src_dir_fd=opened, follow_symlinks=True)
                return
            with temporary_directory(target.parent) as own:
                os.link(str(file.fileno()), own / "new", src_dir_fd=opened, follow_symlinks=True)
                (own / "new").replace(target)
        finally:
            os.close(opened)


def make_private_dir(path: Path) -> None:
    """Make ``path`` (and its parents) a directory that only its owner may enter."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)


def remove_tree(path: Path) -> None:
    """Remove ``path`` with all below it; what is gone already, or goes meanwhile, is success. Symbolic links are not followed."""
    for _ in range(_REMOVALS):
        with suppress(FileNotFoundError):  # of something below, too: then there is still something
            _remove(path)
        if not os.path.lexists(path):
            return
    _remove(path)


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)  # noqa: TID251  the one place that may


def clone_file(source: Path, target: Path, *, mode: int = 0o600, between: Between = go_on) -> str:
    """Copy ``source`` to the new file ``target``: ``"reflink"`` where the file system shares blocks, else ``"sparse"``.

    Holes stay holes. On any error nothing is left behind. FileExistsError if ``target`` is there.
    """
    with source.open("rb") as reader, _new_file(target, mode) as descriptor:
        if _reflink(reader.fileno(), descriptor):
            return "reflink"
        _copy_sparse(reader.fileno(), descriptor, between)
        return "sparse"


def reflink_file(source: Path, target: Path, *, mode: int = 0o600) -> None:
    """Make the new file ``target`` of the blocks of ``source``; OSError where the file system cannot share them, and nothing is left."""
    with source.open("rb") as reader, _new_file(target, mode) as descriptor:
        _reflink(reader.fileno(), descriptor, needed=True)


def copy_file(source: Path, target: Path, *, mode: int = 0o600, between: Between = go_on) -> None:
    """Copy ``source`` to the new file ``target``, whose blocks are its own: the kernel's copy would share them where it can.

    Holes stay holes. On any error nothing is left behind.
    """
    with source.open("rb") as reader, _new_file(target, mode) as descriptor:
        _copy_sparse(reader.fileno(), descriptor, between, _copy_block)


def copy_data(source: Path, target: Path, *, mode: int = 0o600, between: Between = go_on) -> None:
    """Copy the content of ``source``, which may be a block device, to the new file ``target``, with holes where it has zeros.

    On any error nothing is left behind.
    """
    with source.open("rb", buffering=0) as reader, _new_file(target, mode) as descriptor:
        size_bytes, position, zeros = reader.seek(0, os.SEEK_END), 0, bytes(_DIGEST_BLOCK)
        os.ftruncate(descriptor, size_bytes)
        while position < size_bytes:
            between()
            piece = os.pread(reader.fileno(), _COPY_BLOCK, position)
            if not piece:
                raise OSError(errno.EIO, "the source shrank while it was copied")
            for begin in range(0, len(piece), _DIGEST_BLOCK):
                block = piece[begin : begin + _DIGEST_BLOCK]
                if block != zeros[: len(block)]:
                    os.pwrite(descriptor, block, position + begin)
            position += len(piece)


def share_file(source: Path, target: Path, *, between: Between = go_on) -> str:
    """As `clone_file`, of a file that nobody changes any more: where blocks cannot be shared the file itself is, by a ``"link"``.

    ``target`` is read-only.
    """
    try:
        with source.open("rb") as reader, _new_file(target, 0o444) as descriptor:
            _reflink(reader.fileno(), descriptor, needed=True)
            return "reflink"
    except OSError as error:
        if error.errno not in _CANNOT_SHARE:
            raise
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        return clone_file(source, target, mode=0o444, between=between)
    return "link"


def copy_section(
    source: int, begin: int, size_bytes: int, target: int, *, between: Between = go_on
) -> None:
    """Copy ``size_bytes`` at ``begin`` of the file ``source`` to the beginning of the empty file ``target``; holes stay holes."""
    os.ftruncate(target, size_bytes)
    position, end = begin, begin + size_bytes
    while position < end:
        between()
        try:
            position = os.lseek(source, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        hole = min(os.lseek(source, position, os.SEEK_HOLE), end)
        while position < hole:
            between()
            data = os.pread(source, min(_COPY_BLOCK, hole - position), position)
            if not data:
                raise OSError(errno.EIO, "the source shrank while it was copied")
            os.pwrite(target, data, position - begin)
            position += len(data)


@contextmanager
def _new_file(path: Path, mode: int) -> Iterator[int]:
    """A descriptor of the new file ``path``, which is removed if the block fails."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        yield descriptor
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _reflink(source: int, target: int, *, needed: bool = False) -> bool:
    """Whether all blocks of ``source`` are now ``target``'s too; OSError instead of False if that is ``needed``."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if needed or error.errno not in _CANNOT_SHARE:
            raise
        return False
    return True


def _copy_sparse(
    source: int,
    target: int,
    between: Between,
    copy: Callable[[int, int, int, int], int] | None = None,
) -> None:
    copy = copy or _copy_range
    size_bytes = os.fstat(source).st_size
    os.ftruncate(target, size_bytes)
    position = 0
    while position < size_bytes:
        try:
            begin = os.lseek(source, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = os.lseek(source, begin, os.SEEK_HOLE)
        while begin < end:
            between()
            copied = copy(source, target, begin, min(end - begin, _PIECE_BYTES))
            if copied == 0:
                raise OSError(errno.EIO, "the source shrank while it was copied")
            begin += copied
        position = end


def _copy_range(source: int, target: int, position: int, count: int) -> int:
    """Copy up to ``count`` bytes at ``position``; how many were copied."""
    try:
        return os.copy_file_range(source, target, count, position, position)
    except OSError as error:
        if error.errno not in _CANNOT_SHARE:
            raise
    return _copy_block(source, target, position, count)


def _copy_block(source: int, target: int, position: int, count: int) -> int:
    """As `_copy_range`, by reading and writing."""
    return os.pwrite(target, os.pread(source, min(count, _COPY_BLOCK), position), position)


def sparse_digest(path: Path, *, between: Between = go_on) -> str:
    """SHA-256 in hex over ``offset:u64be data`` of every 64 KiB block of ``path`` that is not all zeros, then its size:u64be.

    Equal contents have equal digests wherever their holes are, and 8 GiB of mostly holes take as long as their data.
    """
    digest = hashlib.sha256()
    zeros = bytes(_DIGEST_BLOCK)
    size_bytes = path.stat().st_size
    for position, block in data_blocks(path, _DIGEST_BLOCK, between=between):
        if block != zeros[: len(block)]:
            digest.update(position.to_bytes(8, "big") + block)
    digest.update(size_bytes.to_bytes(8, "big"))
    return digest.hexdigest()


def data_blocks(
    path: Path, block_bytes: int, *, between: Between = go_on
) -> Iterator[tuple[int, bytes]]:
    """Positions and contents of the blocks of ``path`` that are not wholly in a hole, in order."""
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        position = 0
        while position < size_bytes:
            between()
            try:
                data = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                raise
            position = data // block_bytes * block_bytes
            yield position, os.pread(file.fileno(), block_bytes, position)
            position += block_bytes


def length_bytes(path: Path) -> int:
    """The length of ``path``, holes included; 0 if it is gone."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def allocated_bytes(path: Path) -> int:
    """Bytes that ``path`` really takes on its disk (holes excluded); 0 if it is gone."""
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def free_bytes(path: Path) -> int:
    """Bytes that an ordinary user may still write on the file system of ``path``."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def supports_reflink(directory: Path) -> bool:
    """Whether files in ``directory`` can share blocks: found out by doing it."""
    with temporary_directory(directory) as own:
        source = own / "a"
        source.write_bytes(b"x" * 4096)
        return clone_file(source, own / "b") == "reflink"


def read_tail(path: Path, limit_bytes: int) -> bytes:
    """The last ``limit_bytes`` of ``path``; empty if it is gone."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - limit_bytes))
            return file.read(limit_bytes)
    except FileNotFoundError:
        return b""
