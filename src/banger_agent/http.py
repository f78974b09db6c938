"""One HTTP/1.1 request on a stream: a small strict parser with bounds, and answers. One request a stream, then it closes."""

from banger_agent import jsontext
from banger_agent.mux import Closed

MAX_HEAD = 16 * 1024
MAX_BODY = 1024 * 1024
MAX_CHUNK_LINE = 64
FAILED = b"Banger-Failed"  # the trailer of a body that is not whole
REASONS = {
    101: "Switching Protocols", 200: "OK", 204: "No Content", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found",
    405: "Method Not Allowed", 409: "Conflict", 411: "Length Required", 413: "Content Too Large",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 501: "Not Implemented",
    502: "Bad Gateway", 507: "Insufficient Storage",
}  # fmt: skip


class BadRequest(Exception):
    """The request cannot be answered with success: a status and an error for the body."""

    def __init__(self, status, what, detail="", hint=""):
        super().__init__(what)
        self.status = status
        code = {401: "refused", 404: "not-found", 409: "refused"}.get(status, "invalid")
        self.error = {
            "code": code if status < 500 else "failure",
            "what": what,
            "detail": detail,
            "hint": hint,
        }


class Gone(Exception):
    """The stream ended where more was needed."""


class Request:
    """Method, path, query (dict of str) and headers (dict, lower-case names) of one request; its body is read on demand.

    ``answered`` says that an answer has begun: an error can then only be told at the end of its ``body``, or by cutting it short.
    """

    def __init__(self, stream):
        self.stream = stream
        self.answered = False
        self.body = None
        self._rest = b""
        lines = self._read_head().split(b"\r\n")
        words = lines[0].split(b" ")
        if (
            len(words) != 3
            or words[2] not in (b"HTTP/1.1", b"HTTP/1.0")
            or not words[1].startswith(b"/")
        ):
            raise BadRequest(400, "this is not an HTTP/1.1 request")
        self.method = words[0].decode("latin-1")
        path, _, query = words[1].decode("latin-1").partition("?")
        self.path = unquote(path)
        self.query = dict(_pairs(query))
        self.headers = {}
        for line in lines[1:]:
            name, colon, value = line.partition(b":")
            if not colon or not name or name != name.strip():
                raise BadRequest(400, "a header line is malformed")
            self.headers[name.decode("latin-1").lower()] = value.strip().decode("latin-1")
        if "transfer-encoding" in self.headers and "content-length" in self.headers:
            raise BadRequest(400, "a body has a length or an encoding, not both")

    def _read_head(self):
        data = b""
        while True:
            end = data.find(b"\r\n\r\n")
            if end > MAX_HEAD or (end < 0 and len(data) > MAX_HEAD):
                raise BadRequest(431, "the request's head is larger than 16 KiB")
            if end >= 0:
                self._rest = data[end + 4 :]
                return data[:end]
            chunk = self.stream.recv(4096)
            if not chunk:
                raise Gone
            data += chunk

    def recv(self, limit=65536):
        """Bytes after the head, as they come; b"" at the end of the stream."""
        if self._rest:
            chunk, self._rest = self._rest[:limit], self._rest[limit:]
            return chunk
        return self.stream.recv(limit)

    def exactly(self, size):
        """``size`` bytes; Gone if the stream ends first."""
        parts = []
        while size:
            chunk = self.recv(size)
            if not chunk:
                raise Gone
            parts.append(chunk)
            size -= len(chunk)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _length(self):
        """What Content-Length says; None if there is none."""
        text = self.headers.get("content-length")
        if text is not None and not (text.isascii() and text.isdigit() and len(text) < 20):
            raise BadRequest(400, "Content-Length is not a number")
        return None if text is None else int(text)

    def json(self):
        """The body as a JSON object; an absent one is {}."""
        if "transfer-encoding" in self.headers:
            raise BadRequest(411, "a JSON body needs a Content-Length")
        size = self._length() or 0
        if size > MAX_BODY:
            raise BadRequest(413, "the body is larger than 1 MiB")
        body = self.exactly(size)
        try:
            value = jsontext.decode(body) if body else {}
        except (ValueError, RecursionError):
            raise BadRequest(400, "the body is not JSON") from None
        if not isinstance(value, dict):
            raise BadRequest(400, "the body is not a JSON object")
        return value

    def chunks(self):
        """The body piece by piece: chunked or of a given length; Gone if it is cut short."""
        encoding = self.headers.get("transfer-encoding")
        if encoding is not None and encoding.lower() != "chunked":
            raise BadRequest(501, "the only transfer encoding is chunked")
        if encoding is None:
            size = self._length()
            if size is None:
                raise BadRequest(411, "the body needs a length or chunked encoding")
            yield from self._pieces(size)
            return
        while True:
            size = self._chunk_size()
            if not size:
                while self._line():  # trailers mean nothing here
                    pass
                return
            yield from self._pieces(size)
            if self.exactly(2) != b"\r\n":
                raise BadRequest(400, "a chunk does not end where it should")

    def _pieces(self, size):
        while size:
            chunk = self.recv(min(size, 65536))
            if not chunk:
                raise Gone
            size -= len(chunk)
            yield chunk

    def _line(self):
        while b"\r\n" not in self._rest[: MAX_CHUNK_LINE + 2]:
            if len(self._rest) > MAX_CHUNK_LINE:
                raise BadRequest(400, "a line between chunks is malformed")
            more = self.stream.recv(4096)
            if not more:
                raise Gone
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\r\n")
        return line

    def _chunk_size(self):
        digits = self._line().partition(b";")[0].strip()
        if not digits or len(digits) > 15 or digits.strip(b"0123456789abcdefABCDEF"):
            raise BadRequest(400, "a chunk's size is malformed")
        return int(digits, 16)

    def answer(self, status, headers):
        """Send the head of an answer."""
        self.answered = True
        self.stream.sendall(head(status, headers))

    def answer_json(self, status, value):
        """Send a whole answer with a JSON body."""
        body = jsontext.encode(value)
        headers = {"Content-Type": "application/json", "Content-Length": len(body)}
        self.answered = True
        self.stream.sendall(head(status, headers) + body)

    def answer_empty(self):
        """Send an answer that only says yes."""
        self.answer(204, {})


def _pairs(query):
    for part in query.split("&"):
        key, equals, value = part.partition("=")
        if equals:
            yield unquote(key), unquote(value)


def unquote(text):
    """Percent-decoding; UTF-8 with surrogate escapes, so that any path survives."""
    first, *rest = text.encode("latin-1").split(b"%")
    out = [first]
    for part in rest:
        if len(part) < 2 or part[:2].strip(b"0123456789abcdefABCDEF"):
            what = "a percent sign is followed by something else than two hex digits"
            raise BadRequest(400, what)
        out.append(bytes([int(part[:2], 16)]) + part[2:])
    return b"".join(out).decode("utf-8", "surrogateescape")


def head(status, headers):
    """The head of an answer; it is the stream's last unless the headers say otherwise."""
    lines = ["HTTP/1.1 %d %s" % (status, REASONS.get(status, ""))]
    lines += ["%s: %s" % item for item in {"Connection": "close", **headers}.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def refuse(stream, error):
    """Answer with an error, to a host that may be gone."""
    body = jsontext.encode(error.error)
    headers = {"Content-Type": "application/json", "Content-Length": len(body)}
    try:
        stream.sendall(head(error.status, headers) + body)
    except Closed:
        pass  # nobody is left to be told


class ChunkedWriter:
    """A file-like object whose writes become chunks of an answer; `finish` says that it is whole, `fail` that it is not."""

    def __init__(self, request, headers):
        self._stream = request.stream
        request.body = self
        request.answer(200, {"Transfer-Encoding": "chunked", **headers})

    def write(self, data):
        """Send one chunk."""
        if data:
            self._stream.sendall(b"%x\r\n%b\r\n" % (len(data), data))
        return len(data)

    def finish(self):
        """Send the last chunk."""
        self._stream.sendall(b"0\r\n\r\n")

    def fail(self, why):
        """Send the last chunk with a trailer that says what went wrong: unlike the mux, vsock has no other place for it."""
        line = "".join(c if " " <= c <= "~" else "?" for c in why)
        self._stream.sendall(b"0\r\n%s: %s\r\n\r\n" % (FAILED, line.encode()))
