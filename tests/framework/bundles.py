"""Runtime bundles for tests: trees, archives with whatever members, and an HTTP server that cuts, lies and counts."""

import contextlib
import gzip
import hashlib
import io
import ssl
import struct
import tarfile
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec

from banger.bundle import elf, fetch
from banger.bundle.manifest import FileTable, Manifest, to_toml
from banger.bundle.places import Root
from banger.bundle.report import Silent

MACHINES = {"x86_64": 62, "aarch64": 183}


def program(text, architecture=None, *, bits=2, size=0):
    """The bytes of a program, as far as anybody looks: an ELF header and ``text``."""
    machine = MACHINES[architecture or elf.host_architecture()]
    head = b"\x7fELF" + bytes([bits, 1, 1]) + bytes(9) + struct.pack("<HH", 2, machine)
    return (head + text.encode()).ljust(size, b".")


def contents_of(version):
    """What the two programs of a test's bundle hold."""
    return {
        "firecracker": program(f"firecracker {version}"),
        "jailer": program(f"jailer {version}"),
    }


def tar(members, *, zipped=True, end=True):
    """An archive of ``members``: pairs of a TarInfo (or a name) and bytes, in this order. Without ``end`` its last zeros are missing."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member, content in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            if info.isreg():
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        written = buffer.tell()
    data = buffer.getvalue() if end else buffer.getvalue()[:written]
    return gzip.compress(data, mtime=0) if zipped else data


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def manifest_for(contents, archive=b"", *, version="1.0.0", urls=(), **more):
    """A manifest that pins ``contents`` (path to bytes) and ``archive``."""
    return Manifest(
        name="firecracker",
        version=version,
        architecture=elf.host_architecture(),
        files=tuple(
            FileTable(path=path, size_bytes=len(data), sha256=sha256(data))
            for path, data in contents.items()
        ),
        sha256=sha256(archive) if archive else "",
        size_bytes=len(archive),
        urls=tuple(urls),
        **more,
    )


@dataclass
class Bundle:
    """A version of a bundle: its archive, manifest and files, also as a directory."""

    version: str
    directory: Path
    urls: tuple = ()
    contents: dict = field(default_factory=dict)

    def __post_init__(self):
        self.contents = self.contents or contents_of(self.version)
        self.archive = tar(self.contents.items())
        self.manifest = manifest_for(
            self.contents, self.archive, version=self.version, urls=self.urls
        )
        self.tree = self.directory / f"tree-{self.version}"
        for path, data in self.contents.items():
            (self.tree / path).parent.mkdir(parents=True, exist_ok=True)
            (self.tree / path).write_bytes(data)
        self.file = self.directory / f"bundle-{self.version}.tar.gz"
        self.file.write_bytes(self.archive)
        self.manifest_file = self.directory / f"bundle-{self.version}.toml"
        self.save(self.manifest)

    def save(self, manifest):
        self.manifest = manifest
        self.manifest_file.write_text(to_toml(manifest))

    def at(self, *urls):
        """The manifest with these URLs."""
        self.save(msgspec.structs.replace(self.manifest, urls=urls))
        return self.manifest

    def place(self, root):
        """Fetch it from its file."""
        return fetch.fetch(root, fetch.Wish(self.manifest, self.file), Silent())


def a_root(path):
    return Root(Path(path), "test")


def everything_below(path):
    """Every file and link below ``path`` with what it holds, for comparisons."""
    return {
        str(p.relative_to(path)): str(p.readlink()) if p.is_symlink() else p.read_bytes() if p.is_file() else None
        for p in sorted(Path(path).rglob("*"))
    }  # fmt: skip


class Server:
    """Serves ``data`` at every path. ``cut`` says how many bytes an answer may carry before its connection is closed."""

    def __init__(self, data, tls=None):
        self.data = data
        self.ranges = True
        self.etag = '"one"'
        self.cut = None
        self.lie = {}  # header to value
        self.status = {}  # path to status
        self.redirect = {}  # path to URL
        self.asked = []  # (path, Range, If-Range)
        self.served = 0
        self.hold = None  # (after this many bytes, Event to wait for)
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                server._answer(self)
                self.close_connection = True

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        scheme, host = "http", "127.0.0.1"
        if tls is not None:  # files of certificate and key, for localhost
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self._http.socket = context.wrap_socket(
                self._http.socket, server_side=True, do_handshake_on_connect=False
            )
            scheme, host = "https", "localhost"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"{scheme}://{host}:{self._http.server_port}/bundle.tar.gz"

    def _answer(self, request):
        self.asked.append(
            (request.path, request.headers.get("Range"), request.headers.get("If-Range"))
        )
        if request.path in self.redirect:
            request.send_response(302)
            request.send_header("Location", self.redirect[request.path])
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        status, begin = self.status.get(request.path, 200), 0
        asked, condition = request.headers.get("Range"), request.headers.get("If-Range")
        if status == 200 and asked and self.ranges and condition in {None, self.etag}:
            begin = int(asked.removeprefix("bytes=").partition("-")[0])
            status = 206 if begin < len(self.data) else 416
        body = self.data[begin:] if status in {200, 206} else b""
        request.send_response(status)
        headers = {"Content-Length": str(len(body))}
        if self.etag:
            headers["ETag"] = self.etag
        if status == 206:
            headers["Content-Range"] = f"bytes {begin}-{len(self.data) - 1}/{len(self.data)}"
        for name, value in {**headers, **self.lie}.items():
            if value is not None:
                request.send_header(name, value)
        request.end_headers()
        self._send(request, body if self.cut is None else body[: self.cut])

    def _send(self, request, body):
        with contextlib.suppress(ConnectionError):
            if self.hold is not None:
                first, event = self.hold
                self.served += len(body[:first])
                request.wfile.write(body[:first])
                request.wfile.flush()
                event.wait(60)
                body = body[first:]
            self.served += len(body)  # before the client has it and may look
            request.wfile.write(body)
            request.wfile.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
