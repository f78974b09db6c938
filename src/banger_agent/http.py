"""One HTTP/1.1 request on a stream: a small strict parser with bounds, and answers. One request a stream, then it closes."""

MAX_HEAD = 16 * 1024
MAX_BODY = 1024 * 1024
REASONS = {
    101: "Switching Protocols", 200: "OK", 204: "No Content", 400: "Bad Request", 401: "Unauthorized",
    404: "Not Found", 405: "Method Not Allowed", 411: "Length Required", 413: "Content Too Large",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 501: "Not Implemented",
}  # fmt: skip


class BadRequest(Exception):
    """The request cannot be answered with success: a status and an error for the body."""

    def __init__(self, status, what, detail="", hint=""):
        super().__init__(what)
        self.status = status
        self.error = {
            "code": "invalid" if status < 500 else "failure",
            "what": what,
            "detail": detail,
            "hint": hint,
        }


class Gone(Exception):
    """The stream ended where more was needed."""


class Request:
    """Method, path, query (dict of str) and headers (dict, lower-case names) of one request; its body is read on demand."""

    def __init__(self, stream):
        self.stream = stream
        self._rest = b""
        head = self._read_head()
        lines = head.split(b"\r\n")
        words = lines[0].split(b" ")
        if (
            len(words) != 3
            or words[2] not in (b"HTTP/1.1", b"HTTP/1.0")
            or not words[1].startswith(b"/")
        ):
            raise BadRequest(400, "this is not an HTTP/1.1 request")
        self.method = words[0].decode("latin-1")
        target = words[1].decode("latin-1")
        path, _, query = target.partition("?")
        self.path = unquote(path)
        self.query = dict(_pairs(query))
        self.headers = {}
        for line in lines[1:]:
            name, colon, value = line.partition(b":")
            if not colon or not name or name != name.strip():
                raise BadRequest(400, "a header line is malformed")
            self.headers[name.decode("latin-1").lower()] = value.strip().decode("latin-1")

    def _read_head(self):
        data = b""
        while True:
            end = data.find(b"\r\n\r\n")
            if end >= 0:
                self._rest = data[end + 4 :]
                return data[:end]
            if len(data) > MAX_HEAD:
                raise BadRequest(431, "the request's head is larger than 16 KiB")
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
        return b"".join(parts)

    def json(self):
        """The body as a JSON object; an absent one is {}."""
        import json

        text = self.headers.get("content-length", "0")
        if not text.isdigit():
            raise BadRequest(400, "Content-Length is not a number")
        size = int(text)
        if size > MAX_BODY:
            raise BadRequest(413, "the body is larger than 1 MiB")
        body = self.exactly(size)
        try:
            value = json.loads(body) if body else {}
        except (ValueError, RecursionError):
            raise BadRequest(400, "the body is not JSON") from None
        if not isinstance(value, dict):
            raise BadRequest(400, "the body is not a JSON object")
        return value

    def chunks(self):
        """The body piece by piece: chunked or of a given length; Gone if it is cut short."""
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            text = self.headers.get("content-length")
            if text is None or not text.isdigit():
                raise BadRequest(411, "the body needs a length or chunked encoding")
            left = int(text)
            while left:
                chunk = self.recv(min(left, 65536))
                if not chunk:
                    raise Gone
                left -= len(chunk)
                yield chunk
            return
        while True:
            size = self._chunk_size()
            while size:
                chunk = self.recv(min(size, 65536))
                if not chunk:
                    raise Gone
                size -= len(chunk)
                yield chunk
                if not size:
                    self.exactly(2)
            if self._last:
                return

    def _chunk_size(self):
        line = b""
        while not line.endswith(b"\r\n"):
            if len(line) > 32:
                raise BadRequest(400, "a chunk's size is malformed")
            line += self.exactly(1)
        try:
            size = int(line.split(b";")[0], 16)
        except ValueError:
            raise BadRequest(400, "a chunk's size is malformed") from None
        self._last = size == 0
        if self._last:
            self.exactly(2)
        return size


def _pairs(query):
    for part in query.split("&"):
        key, equals, value = part.partition("=")
        if equals:
            yield unquote(key), unquote(value)


def unquote(text):
    """Percent-decoding; UTF-8 with surrogate escapes, so that any path survives."""
    if "%" not in text:
        return text
    first, *rest = text.encode("latin-1").split(b"%")
    out = [first]
    for part in rest:
        try:
            out.append(bytes([int(part[:2], 16)]) + part[2:])
        except ValueError:
            raise BadRequest(
                400, "a percent sign is followed by something else than two hex digits"
            ) from None
    return b"".join(out).decode("utf-8", "surrogateescape")


def head(status, headers):
    """The head of an answer."""
    lines = ["HTTP/1.1 %d %s" % (status, REASONS.get(status, ""))]
    lines += ["%s: %s" % item for item in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def send_json(stream, status, value):
    """A whole answer with a JSON body."""
    import json

    body = json.dumps(value).encode()
    headers = {
        "Content-Type": "application/json",
        "Content-Length": len(body),
        "Connection": "close",
    }
    stream.sendall(head(status, headers) + body)


class ChunkedWriter:
    """A file-like object whose writes become chunks of an answer; `finish` says that it is whole."""

    def __init__(self, stream, content_type):
        self._stream = stream
        headers = {
            "Content-Type": content_type,
            "Transfer-Encoding": "chunked",
            "Connection": "close",
        }
        stream.sendall(head(200, headers))

    def write(self, data):
        """Send one chunk."""
        if data:
            self._stream.sendall(b"%x\r\n" % len(data) + bytes(data) + b"\r\n")
        return len(data)

    def finish(self):
        """The last chunk."""
        self._stream.sendall(b"0\r\n\r\n")
