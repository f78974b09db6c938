"""GET and PUT /files: trees as tar streams, over the mux or a bulk port."""

import os

from banger_agent import bulk, jsontext, tars
from banger_agent.http import BadRequest, ChunkedWriter

_MUX_BLOCK = 64 * 1024 - 512  # with a chunk's head it fills two frames of the mux


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
            tars.pack(path, name, tars.Blocks(writer.write, _MUX_BLOCK))
        else:
            writer = ChunkedWriter(request, {bulk.HEADER: "yes", **headers})
            tars.pack(path, name, tars.Blocks(transfer.send, bulk.MAX_BLOCK, bulk.HEAD))
            transfer.finish()
        writer.finish()
    finally:
        if transfer is not None:
            transfer.close()


def put(request, ports):
    """Unpack the tar in the body into the directory ``path``, which must be there. A member that would land elsewhere is refused."""
    directory = os.path.realpath(_path(request))
    if not os.path.isdir(directory):
        raise BadRequest(404, "%s is no directory" % directory)
    if bulk.HEADER.lower() not in request.headers:
        tars.unpack(request.chunks(), directory)
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
            tars.unpack(transfer.chunks(), directory)
        except BadRequest as error:
            outcome = {"status": error.status, "error": error.error}
        writer.write(jsontext.encode(outcome))
        writer.finish()
    finally:
        if transfer is not None:
            transfer.close()
