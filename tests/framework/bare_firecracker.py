"""A Firecracker that a script configures by hand over its API, with the files of a banger image: what banger is measured against."""

import asyncio
import contextlib
import http.client
import json
import re
import socket
import struct
import subprocess
import time

from banger.api.frames import FrameType
from banger.guest.identity import IdentityStore
from banger.host import fs
from banger.model.machine import IdentityRequest, VmPaths
from tests.framework.installation import wait_until

BOOT_ARGS = (
    "console=ttyS0 quiet loglevel=1 reboot=k panic=1 net.ifnames=0 cryptomgr.notests random.trust_cpu=on "
    "i8042.noaux i8042.nokbd i8042.nomux i8042.dumbkbd rw"
)
VM_ID = "b" * 12
CID = 3
_FRAME = struct.Struct(">BI")
CALL_S = 60
BOOT_S = 180  # on a machine that emulates the processor of the emulated machine


class UnixHttp(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=CALL_S)
        self._path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class BareFirecracker:
    """One process; ``directory`` has its files: api.sock, vsock.sock, console.log, firecracker.log and the drives."""

    def __init__(self, program, directory):
        self.directory = directory
        self.paths = VmPaths(directory, directory)
        self.vsock = directory / "vsock.sock"
        self._api = directory / "api.sock"
        self.began = time.monotonic()
        with self.paths.console_log.open("wb") as console:
            self.process = subprocess.Popen(
                [program, "--api-sock", self._api, "--id", "bare"],
                stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT,
            )  # fmt: skip
        wait_until(self._listens, 60, "the API's socket did not appear")
        self._connection = UnixHttp(self._api)

    def _listens(self):
        """The socket is there a moment before."""
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self._api)) == 0

    def call(self, method, path, body=None):
        """Status and answer of one request."""
        data = None if body is None else json.dumps(body)
        self._connection.request(method, path, data, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text else None

    def put(self, path, **body):
        """A request that must succeed."""
        status, answer = self.call("PUT", path, body)
        assert status == 204, f"PUT {path}: {status} {answer}"

    @staticmethod
    def prepare_in(directory, image):
        """Copies of the image's disks and an identity drive."""
        paths = VmPaths(directory, directory)
        fs.clone_file(image / "rootfs.img", directory / "rootfs.img")
        fs.clone_file(image / "work-seed.img", paths.work)
        request = IdentityRequest(VM_ID, "bare", None)
        asyncio.run(IdentityStore(directory).write(request, paths))

    def prepare(self, image):
        """As `prepare_in`, in its own directory."""
        self.prepare_in(self.directory, image)

    def configure(self, image, *, boot_args=BOOT_ARGS, vcpus=1, memory_mib=512):
        """Everything but the start."""
        (self.directory / "firecracker.log").touch()
        self.put("/logger", log_path=str(self.directory / "firecracker.log"), level="Info")
        self.put("/machine-config", vcpu_count=vcpus, mem_size_mib=memory_mib)
        self.put(
            "/boot-source", kernel_image_path=str(image / "vmlinux"),
            initrd_path=str(image / "initramfs.img"), boot_args=boot_args,
        )  # fmt: skip
        self._drive("rootfs", self.directory / "rootfs.img")
        self._drive("work", self.paths.work)
        self._drive("identity", self.paths.identity, read_only=True)
        self.put("/vsock", guest_cid=CID, uds_path=str(self.vsock))
        self.put("/entropy")

    def _drive(self, name, path, *, read_only=False):
        self.put(
            f"/drives/{name}", drive_id=name, path_on_host=str(path),
            is_root_device=False, is_read_only=read_only,
        )  # fmt: skip

    def start(self):
        """Boot; returns the seconds that the call took."""
        self.began = time.monotonic()
        self.put("/actions", action_type="InstanceStart")
        return time.monotonic() - self.began

    def console(self):
        """All that the guest has printed."""
        return self.paths.console_log.read_text(errors="replace")

    def wait_console(self, text, timeout_s=BOOT_S):
        """Seconds from the start until the console had ``text``."""

        def there():
            if self.process.poll() is not None and text not in self.console():
                raise AssertionError(f"it ended with {self.process.returncode}: {self.ends()}")
            return text in self.console()

        wait_until(there, timeout_s, f"no {text!r} in time: {self.ends()}")
        return time.monotonic() - self.began

    def ends(self):
        """The last words of guest and VMM."""
        log = self.directory / "firecracker.log"
        return f"{self.console()[-2000:]}\n{log.read_text()[-2000:] if log.exists() else ''}"

    def connect(self, port, timeout_s=CALL_S):
        """A connection to a vsock port of the guest; ConnectionError if nobody listens there."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(timeout_s)
            connection.connect(str(self.vsock))
            _shake_hands(connection, port)
        except BaseException:
            connection.close()
            raise
        return connection

    def ask(self, method, target, body=None):
        """Status and JSON of one request to the guest's agent."""
        token = self.paths.agent_token.read_text().strip()
        client = http.client.HTTPConnection("guest", timeout=CALL_S)
        client.sock = self.connect(1024, CALL_S)
        with contextlib.closing(client):
            data = None if body is None else json.dumps(body)
            client.request(method, target, data, {"Authorization": f"Bearer {token}"})
            answer = client.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text else None

    def run(self, *argv, timeout_s=60):
        """Output and status of a command in the guest."""
        body = json.dumps({"argv": list(argv), "tty": False, "env": {}, "cwd": None}).encode()
        head = (
            "POST /exec HTTP/1.1\r\nHost: guest\r\nConnection: Upgrade\r\nUpgrade: banger-exec\r\n"
            f"Authorization: Bearer {self.paths.agent_token.read_text().strip()}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        with self.connect(1024, timeout_s) as connection, connection.makefile("rb") as answers:
            connection.sendall(head.encode() + body + _FRAME.pack(FrameType.STDIN_EOF, 0))
            status = answers.readline()
            assert b" 101 " in status, status
            while answers.readline() not in {b"\r\n", b""}:
                pass  # a header
            out = b""
            while len(begin := answers.read(_FRAME.size)) == _FRAME.size:
                kind, length = _FRAME.unpack(begin)
                payload = answers.read(length)
                if kind in {FrameType.EXIT, FrameType.FAILED}:
                    return out.decode(), payload[0] if kind == FrameType.EXIT else payload.decode()
                out += payload
        raise ConnectionError(f"cut off: {argv}")

    def wait_agent(self, timeout_s=BOOT_S):
        """Seconds from the start until the agent answered."""

        def answers():
            try:
                return self.ask("GET", "/healthz")[0] == 200
            except (ConnectionError, TimeoutError, http.client.HTTPException):
                assert self.process.poll() is None, self.ends()
                return False

        wait_until(answers, timeout_s, f"no agent: {self.ends()}")
        return time.monotonic() - self.began

    def wait_end(self, timeout_s=BOOT_S):
        """The exit status of the process, and the seconds until then from now."""
        began = time.monotonic()
        status = self.process.wait(timeout_s)
        return status, time.monotonic() - began

    def close(self):
        """End it, however it is."""
        self._connection.close()
        self.process.kill()
        self.process.wait()


def _shake_hands(connection, port):
    """Firecracker's docs/vsock.md, "Host-Initiated Connections"; ConnectionError if it is refused."""
    connection.sendall(b"CONNECT %d\n" % port)
    answer = _line(connection)
    if not re.fullmatch(rb"OK \d+\n", answer):
        raise ConnectionError(f"port {port} of the guest: {answer}")


def _line(connection):
    """Up to the first newline, and not a byte more; what there is of it if the connection ends."""
    line = b""
    while not line.endswith(b"\n") and (byte := connection.recv(1)):
        line += byte
    return line
