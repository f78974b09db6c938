"""Trees as tar streams, without what costs a slow guest most: copies of data on the way, and members kept in memory."""

import errno
import os
import stat
import tarfile

from banger_agent.http import BadRequest

_ZEROS = bytes(128 * 1024)
_RECORD = 512
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_HEADER = (
    tarfile.InvalidHeaderError,  # type: ignore[attr-defined]  # not in typeshed
    tarfile.TruncatedHeaderError,  # type: ignore[attr-defined]
    tarfile.EmptyHeaderError,  # type: ignore[attr-defined]
)
tarfile.pwd = tarfile.grp = None  # type: ignore[attr-defined]  # the numbers count; names would be looked up anew for each file


class Blocks:
    """Gathers bytes into one block of ``size``, which ``send(view)`` gets when it is full.

    The view begins with ``head`` bytes of room, so that what has to stand before the block needs no copy of it.
    """

    def __init__(self, send, size, head=0):
        self._send = send
        self._head = head
        self._block = memoryview(bytearray(head + size))
        self._end = head

    def write(self, data):
        """Add ``data``."""
        view = memoryview(data)
        while view:
            part = view[: len(self._block) - self._end]
            self._block[self._end : self._end + len(part)] = part
            self._advance(len(part))
            view = view[len(part) :]

    def read_from(self, descriptor, size):
        """Add ``size`` bytes of a file; OSError if it has fewer."""
        while size:
            count = os.readv(descriptor, [self._block[self._end : self._end + size]])
            if not count:
                raise OSError(errno.EIO, "a file became shorter while it was read")
            self._advance(count)
            size -= count

    def _advance(self, count):
        self._end += count
        if self._end == len(self._block):
            self.flush()

    def flush(self):
        """Send what there is."""
        if self._end > self._head:
            self._send(self._block[: self._end])
            self._end = self._head


def pack(path, name, blocks):
    """Write a tar of ``path`` into ``blocks``, as the member ``name`` and what is below it, and flush."""
    # It knows which files are links to one another.
    archive = tarfile.TarFile(mode="w", fileobj=_Nowhere())
    waiting = _add(archive, path, name, blocks)
    while waiting:
        path, name = waiting.pop()
        try:
            waiting += _add(archive, path, name, blocks)
        except FileNotFoundError:
            pass  # it was removed meanwhile
    blocks.write(bytes(2 * _RECORD))
    blocks.flush()


class _Nowhere:
    def tell(self):
        return 0


def _add(archive, path, name, blocks):
    """Write one member; what is below it, last one first."""
    member = archive.gettarinfo(path, name)
    if member is None:
        return []  # a socket
    header = member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    if member.isreg():
        _add_file(path, header, member.size, blocks)
        return []
    entries = sorted(os.listdir(path), reverse=True) if member.isdir() else []
    blocks.write(header)
    return [(os.path.join(path, entry), name + "/" + entry) for entry in entries]


def _add_file(path, header, size, blocks):
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "%s was replaced while it was read" % path)
        blocks.write(header)
        blocks.read_from(descriptor, size)
    finally:
        os.close(descriptor)
    blocks.write(bytes(-size % _RECORD))


class _Body:
    """Pieces of bytes as a file that is read forwards only. At their end it is short, as a file is.

    The source may use the memory of a piece again as soon as the next one is asked for.
    """

    def __init__(self, chunks):
        self._chunks = chunks
        self._rest = memoryview(b"")
        self._at = 0

    def pieces(self, size):
        """The next ``size`` bytes as they come; fewer at the end."""
        while size:
            if not self._rest:
                self._rest = memoryview(next(self._chunks, b""))
                if not self._rest:
                    return
            piece = self._rest[:size]
            self._rest = self._rest[size:]
            size -= len(piece)
            self._at += len(piece)
            yield piece

    def read(self, size):
        data = bytearray()
        for piece in self.pieces(size):
            data += piece  # at once: a piece is good until the next one is asked for
        return bytes(data)

    def tell(self):
        return self._at

    def seek(self, position):
        if position < self._at:
            raise tarfile.StreamError("a stream is read forwards only")
        for _ in self.pieces(position - self._at):
            pass


class _Member(tarfile.TarInfo):
    """A header. Where there is none, nor the zeros of an archive's end, tarfile would end silently: this is an error."""

    @classmethod
    def fromtarfile(cls, archive):
        try:
            member = super().fromtarfile(archive)
            int(member.mtime)  # an extended header may say inf or nan
        except (*_NO_HEADER, ValueError, OverflowError, RecursionError) as error:
            raise tarfile.ReadError("%s at byte %d" % (error, archive.offset)) from None
        return member


class _Archive(tarfile.TarFile):
    """An archive read from a `_Body`; whole pieces of zeros become holes, as ``cp`` makes them."""

    tarinfo = _Member

    def makefile(self, tarinfo, targetpath):
        if tarinfo.sparse is not None:
            super().makefile(tarinfo, targetpath)
            return
        left = tarinfo.size
        with open(targetpath, "wb", buffering=0) as file:
            for piece in self.fileobj.pieces(left):
                left -= len(piece)
                if not (piece[0] or piece[-1]) and _ZEROS.startswith(bytes(piece)):
                    file.seek(len(piece), os.SEEK_CUR)
                    continue
                done = 0
                while done < len(piece):
                    done += file.write(piece[done:])
            file.truncate(tarinfo.size - left)
        if left:
            raise tarfile.ReadError("unexpected end of data")


def unpack(chunks, directory):
    """Unpack the tar in ``chunks`` into ``directory`` (without links in its path), as ``cp -a`` would put its members there."""
    folders = []
    name = "the archive"
    try:
        with _Archive(mode="r", fileobj=_Body(chunks)) as archive:
            archive.extraction_filter = staticmethod(lambda member, _path: member)
            for member in iter(archive.next, None):
                archive.members.clear()  # else it keeps all of them
                name = repr(member.name[:200])
                _extract(archive, member, directory, folders)
            for member, target in reversed(folders):  # after what lies in them was written
                name = repr(member.name[:200])
                archive.chown(member, target, numeric_owner=True)
                archive.utime(member, target)
                archive.chmod(member, target)
    except (tarfile.TarError, EOFError) as error:
        raise BadRequest(400, "the body is no tar archive", str(error)) from None
    except (OSError, ValueError, KeyError) as error:
        status = 507 if getattr(error, "errno", None) in _FULL else 400
        why = getattr(error, "strerror", None) or str(error)
        raise BadRequest(status, "member %s: %s" % (name, why)) from None
    for _ in chunks:
        pass  # what tar pads its end with


def _extract(archive, member, directory, folders):
    name = member.name
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise BadRequest(400, "member %r would land outside of the directory" % name[:200])
    target = os.path.normpath(os.path.join(directory, name))
    if not _inside(os.path.dirname(target) if target != directory else target, directory):
        raise BadRequest(400, "member %r would be written through a link" % name[:200])
    if member.isdir():
        if os.path.lexists(target) and not (os.path.isdir(target) and _inside(target, directory)):
            raise BadRequest(400, "member %r: something else is in its place" % name[:200])
        os.makedirs(target, 0o700, exist_ok=True)
        folders.append((member, target))
        return
    if target == directory:
        raise BadRequest(400, "member %r would land outside of the directory" % name[:200])
    if os.path.isdir(target) and not os.path.islink(target):
        raise BadRequest(400, "member %r: a directory is in its place" % name[:200])
    if member.islnk():
        source = os.path.join(directory, member.linkname)
        if not _inside(os.path.dirname(source), directory) or not os.path.lexists(source):
            what = "member %r links to a file that is not in the directory" % name[:200]
            raise BadRequest(400, what)
        if os.path.lexists(target) and os.path.samefile(source, target):
            return
    if os.path.lexists(target):
        os.unlink(target)
    archive.extract(member, directory, numeric_owner=True)
    if member.issym():
        os.utime(target, (member.mtime, member.mtime), follow_symlinks=False)


def _inside(path, directory):
    real = os.path.realpath(path)
    return real == directory or real.startswith(directory.rstrip("/") + "/")
