"""GET and PUT /files: trees as tar streams."""

import os

from banger_agent.http import BadRequest, ChunkedWriter


def _path(request):
    path = request.query.get("path", "")
    if not path.startswith("/") or "\0" in path:
        raise BadRequest(400, "path must be absolute")
    return path


def get(request):
    """A tar of ``path``: its members are named from its last component on; ``path/.`` is the content without the folder."""
    import tarfile

    path = _path(request)
    content_only = path.endswith("/.")
    path = os.path.normpath(path)
    if not os.path.lexists(path):
        raise BadRequest(404, "%s is not there" % path)
    name = "." if content_only or path == "/" else os.path.basename(path)
    writer = ChunkedWriter(request.stream, "application/x-tar")
    with tarfile.open(
        mode="w|", fileobj=writer, bufsize=64 * 1024, format=tarfile.PAX_FORMAT
    ) as archive:
        archive.add(path, arcname=name)
    writer.finish()


class _Body:
    """The request's body as a file."""

    def __init__(self, request):
        self._chunks = request.chunks()
        self._rest = b""

    def read(self, size):
        parts = []
        while size > 0:
            if not self._rest:
                self._rest = next(self._chunks, b"")
                if not self._rest:
                    break
            parts.append(self._rest[:size])
            self._rest = self._rest[size:]
            size -= len(parts[-1])
        return b"".join(parts)

    def drain(self):
        for _ in self._chunks:
            pass


def put(request):
    """Unpack the tar in the body into the directory ``path``, which must be there. A member that would land elsewhere is refused."""
    import tarfile

    directory = os.path.realpath(_path(request))
    if not os.path.isdir(directory):
        raise BadRequest(404, "%s is no directory" % directory)
    body = _Body(request)
    try:
        with tarfile.open(mode="r|", fileobj=body, bufsize=64 * 1024) as archive:
            for member in archive:
                _extract(archive, member, directory)
    except tarfile.TarError as error:
        raise BadRequest(400, "the body is no tar archive", str(error)) from None
    except OSError as error:
        raise BadRequest(400, "%s: %s" % (error.filename or directory, error.strerror)) from None
    body.drain()


def _extract(archive, member, directory):
    name = member.name
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise BadRequest(400, "member %r would land outside of the directory" % name[:200])
    parent = os.path.realpath(os.path.join(directory, os.path.dirname(name)))
    if parent != directory and not parent.startswith(directory.rstrip("/") + "/"):
        raise BadRequest(400, "member %r would be written through a link" % name[:200])
    target = os.path.join(directory, name)
    if not member.isdir() and os.path.lexists(target):
        if os.path.isdir(target) and not os.path.islink(target):
            raise BadRequest(400, "%s is a directory" % target)
        os.unlink(target)
    if member.islnk():
        source = os.path.realpath(os.path.join(directory, member.linkname))
        if not source.startswith(directory.rstrip("/") + "/"):
            raise BadRequest(400, "member %r links to a file outside" % name[:200])
    archive.extract(member, directory, numeric_owner=True)
