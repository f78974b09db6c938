"""GET and PUT /files: trees as tar streams, over the mux or a bulk port."""

import errno
import os
import tarfile

from banger_agent import bulk, jsontext
from banger_agent.http import BadRequest, ChunkedWriter

_MUX_BLOCK = 64 * 1024 - 512  # with a chunk's head it fills two frames of the mux
_COPY = 128 * 1024
_ZEROS = memoryview(bytes(128 * 1024))
tarfile.pwd = tarfile.grp = None  # type: ignore[attr-defined]  # the numbers count; names would be looked up anew for each file
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _path(request):
    path = request.query.get("path", "")
    if not path.startswith("/") or "\0" in path:
        raise BadRequest(400, "path must be absolute")
    return path


def get(request, ports):
    """A tar of ``path``: its members are named from its last component on; ``path/.`` is the content without the folder."""
    path = _path(request)
    content_only = path.endswith("/.")
    path = os.path.normpath(path)
    if not os.path.lexists(path):
        raise BadRequest(404, "%s is not there" % path)
    name = "." if content_only or path == "/" else os.path.basename(path)
    headers = {"Content-Type": "application/x-tar"}
    transfer = ports.take(request)
    try:
        if transfer is None or not transfer.begin_sending():
            writer = ChunkedWriter(request, headers)
            _pack(path, name, writer, _MUX_BLOCK)
        else:
            writer = ChunkedWriter(request, {bulk.HEADER: "yes", **headers})
            _pack(path, name, transfer, bulk.MAX_BLOCK)
            transfer.finish()
        writer.finish()
    finally:
        if transfer is not None:
            transfer.close()


class _Blocks:
    """The file that a tar is written to: small writes are gathered, blocks of one size go to ``target``."""

    def __init__(self, target, size):
        self._target = target
        self._block = memoryview(bytearray(size))
        self._filled = 0
        self._sent = 0

    def write(self, data):
        view = memoryview(data)
        while view:
            part = view[: len(self._block) - self._filled]
            self._block[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            view = view[len(part) :]
            if self._filled == len(self._block):
                self.flush()

    def flush(self):
        if self._filled:
            self._target.write(self._block[: self._filled])
            self._sent += self._filled
            self._filled = 0

    def tell(self):
        return self._sent + self._filled


def _pack(path, name, target, block_bytes):
    blocks = _Blocks(target, block_bytes)
    with tarfile.TarFile(
        mode="w", fileobj=blocks, format=tarfile.PAX_FORMAT, copybufsize=_COPY
    ) as archive:

        def forget(member):
            archive.members.clear()  # else it keeps all of them
            return member

        archive.add(path, arcname=name, filter=forget)
    blocks.flush()


def put(request, ports):
    """Unpack the tar in the body into the directory ``path``, which must be there. A member that would land elsewhere is refused."""
    directory = os.path.realpath(_path(request))
    if not os.path.isdir(directory):
        raise BadRequest(404, "%s is no directory" % directory)
    if bulk.HEADER.lower() not in request.headers:
        _unpack(request.chunks(), directory)
        request.answer_empty()
        return
    transfer = ports.take(request)
    try:
        if transfer is None or not transfer.begin_receiving():
            raise BadRequest(409, "there is no such bulk port, or another has it")
        # Only now does the host begin to send, so the answer starts before its outcome is known: that is in the body.
        writer = ChunkedWriter(request, {bulk.HEADER: "yes", "Content-Type": "application/json"})
        outcome = {"status": 204}
        try:
            _unpack(transfer.chunks(), directory)
        except BadRequest as error:
            outcome = {"status": error.status, "error": error.error}
        writer.write(jsontext.encode(outcome))
        writer.finish()
    finally:
        if transfer is not None:
            transfer.close()


class _Body:
    """Pieces of bytes as a file that is read forwards only. At their end it is short, as a file is."""

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
        return b"".join(self.pieces(size))

    def tell(self):
        return self._at

    def seek(self, position):
        if position < self._at:
            raise tarfile.StreamError("a stream is read forwards only")
        for _ in self.pieces(position - self._at):
            pass


class _Archive(tarfile.TarFile):
    """An archive read from a `_Body`; whole pieces of zeros become holes, as ``cp`` makes them."""

    def makefile(self, tarinfo, targetpath):
        if tarinfo.sparse is not None:
            super().makefile(tarinfo, targetpath)
            return
        left = tarinfo.size
        with open(targetpath, "wb", buffering=0) as file:
            for piece in self.fileobj.pieces(left):
                left -= len(piece)
                if piece == _ZEROS[: len(piece)]:
                    file.seek(len(piece), os.SEEK_CUR)
                    continue
                done = 0
                while done < len(piece):
                    done += file.write(piece[done:])
            file.truncate(tarinfo.size - left)
        if left:
            raise tarfile.ReadError("unexpected end of data")


def _unpack(chunks, directory):
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


def _inside(path, directory):
    real = os.path.realpath(path)
    return real == directory or real.startswith(directory.rstrip("/") + "/")
