"""A daemon for tests of client and CLI: the API's routes on a real Unix socket, served by threads, over objects in memory.

Commands run on this host in place of a guest, files lie in ``root``, and an operation stands still at a stage that a test put
into ``hold`` until `release` is called. `requests` has what was asked, in order.
"""

import contextlib
import fcntl
import http.server
import io
import os
import pty
import signal
import socket
import socketserver
import struct
import subprocess
import tarfile
import termios
import threading
import urllib.parse
from pathlib import Path

import msgspec
from websockets.exceptions import ConnectionClosed
from websockets.server import ServerProtocol
from websockets.sync.server import Server, ServerConnection

from banger.api import routes, schema
from banger.api.frames import FrameType
from banger.model.errors import BangerError, InvalidInputError, NotFoundError, RefusedError
from banger.model.ids import new_id
from tests.framework.stages import CREATE_STAGES

FILTER = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}  # Debian 12's Python has none
AT = "2026-01-01T00:00:00.000Z"


def a_vm(name="web", state="running", **changes):
    spec = schema.VmSpec("debian", 2, 2048, 8 << 30, 16 << 30, "auto", "auto", nat=True)
    status = schema.VmStatus()
    if state in {"running", "paused"}:
        status = schema.VmStatus(
            "qemu",
            "tcg",
            4711,
            "user",
            "10.0.0.2",
            AT,
            [schema.ServiceStatus("ssh", 22, ready=True)],
            [schema.Forward(40000, 5353, "udp")],
        )
    vm = schema.Vm(new_id(), name, state, state == "running", AT, spec, status)
    for key, value in changes.items():
        setattr(vm, key, value)
    return vm


def an_image(name="debian", **changes):
    image = schema.Image(
        new_id(), name, "debian", "bookworm", "amd64", AT, 8 << 30, 300 << 20, "6.1.0-13-amd64",
        [schema.ServiceStatus("ssh", 22, ready=False)], {"bash": "5.2"}, [],
    )  # fmt: skip
    for key, value in changes.items():
        setattr(image, key, value)
    return image


IMAGE_PLAN = schema.ImagePlan(
    "mine", "/r/mine.toml", "debian bookworm amd64", "0" * 64, "", [], ["bash"], ["dev"], {"/etc/motd": "1" * 64},
    {"hooks[0]": "2" * 64}, ["ssh 22"], 8 << 30, 1 << 30, 3, 4096,
    [
        schema.PlannedStage("resolve", "compare", []),
        schema.PlannedStage("packages", "1 package", [["mmdebstrap", "--customize-hook=a b"]]),
    ],
)  # fmt: skip


def image_diff(before, after):
    """Nothing, of an image with itself."""
    changed = before != after
    return schema.ImageDiff(
        before,
        after,
        [schema.Difference("changed", "bash", "5.1", "5.2")] * changed,
        [schema.Difference("added", "/etc/mo\x1btd", "", "file 0644 0:0 6 B")] * changed,
    )


class FakeDaemon:
    """Use as a context manager; ``socket_path`` is where it listens."""

    def __init__(self, directory, version="0.1.0"):
        self.socket_path = Path(directory) / "bangerd.sock"
        self.root = Path(directory) / "guest"
        (self.root / "root").mkdir(parents=True)
        self.version = version
        self.vms, self.images, self.operations = [], [an_image()], []
        self.happenings = []
        self.health = schema.Health(
            True, True, "ok", "1", "boot", 12.5, [schema.ServiceStatus("ssh", 22, ready=True)]
        )
        self.stats = schema.Stats(
            1.5, 200 << 20, 5 << 20, 9 << 20, 12.5, 0.25, 2 << 30, 1 << 30, 1 << 28, 1 << 20
        )
        self.ports = [
            schema.Port("tcp", "0.0.0.0", 22, "sshd", 2222),
            schema.Port("udp", "::", 5353, ""),
        ]
        self.console = b"".join(b"line %d\n" % n for n in range(200))
        self.usage = schema.DiskUsage(
            "/state",
            [
                schema.DiskUse(
                    "vm", "a" * 12, "web", 24 << 30, 9 << 20, 5 << 20, 4 << 20, "reflink"
                ),
                schema.DiskUse("image", "d" * 12, "debian", 8 << 30, 300 << 20, 5 << 20, 295 << 20),
                schema.DiskUse("other", "", "banger.db", 4096, 4096, None, None),
            ],
            304 << 20,
            exact=False,
            file_systems=[schema.FileSystem("/state", 100 << 30, 40 << 30)],
        )
        self.leftovers = []
        self.residue = []
        self.fail_at = {}  # stage -> BangerError
        self.hold = set()
        self.held = threading.Event()
        self._release = threading.Event()
        self.requests = []
        self.wishes = []
        self.cut_events_after = None  # the event stream is cut after so many events
        self.tcp = {}  # guest port -> function(ServerConnection)
        self.raw = {}  # (method, path) -> (status, body) that overrides everything
        self.changed = threading.Condition()

    def release(self):
        self._release.set()

    def __enter__(self):
        self.server = _Server(str(self.socket_path), _Handler)
        self.server.daemon = self
        self.web_sockets = Server(self.server.socket, lambda connection: None)
        self.thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}
        )
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.release()
        self.server.shutdown()
        self.thread.join(60)
        self.server.server_close()

    def find(self, items, ref, what):
        for item in items:
            if ref == getattr(item, "name", None) or ref == item.id:
                return item
        found = [item for item in items if item.id.startswith(ref)]
        if len(found) != 1:
            raise NotFoundError(
                f"no {what} {ref!r}",
                hint=f"banger {'op' if what == 'operation' else what.lower()} list",
            )
        return found[0]

    def vm(self, ref):
        return self.find(self.vms, ref, "VM")

    def begin(self, kind, target, name, stages=(), done=lambda: None):
        operation = schema.Operation(new_id(), kind, target, name, "pending", AT, None, [])
        self.operations.insert(0, operation)
        answer = msgspec.structs.replace(operation, stages=[])
        threading.Thread(target=self._run, args=(operation, stages, done), daemon=True).start()
        return answer

    def _tell(self, change):
        with self.changed:
            change()
            self.changed.notify_all()

    def _run(self, operation, stages, done):
        self._tell(lambda: setattr(operation, "state", "running"))
        for name in stages:
            stage = schema.Stage(name, "running", AT)
            with self.changed:
                operation.stages.append(stage)
                self.changed.notify_all()
            if name in self.hold:
                self.held.set()
                self._release.wait(60)
            state = "failed" if name in self.fail_at else "succeeded"
            if operation.state == "cancelled":
                state = "cancelled"
            with self.changed:
                stage.duration_ms, stage.state = 12.0, state
                stage.detail = "reflink" if name == "disks" else ""
                self.changed.notify_all()
            if state != "succeeded":
                break
        error = next((self.fail_at[name] for name in stages if name in self.fail_at), None)
        if error is None and operation.state != "cancelled":
            done()

        def end():
            operation.duration_ms = 3210.0
            if operation.state != "cancelled":
                operation.state = "failed" if error else "succeeded"
            if error:
                operation.error = schema.Error(error.code, error.what, error.detail, error.hint)

        self._tell(end)

    # each answers (status, struct or bytes)

    def create(self, body, **_):
        wish = msgspec.json.decode(body, type=schema.VmCreate)
        self.wishes.append(wish)
        name = wish.name or "brisk-otter"
        if any(vm.name == name for vm in self.vms):
            raise RefusedError(f"VM name {name!r} is taken", hint="choose another name")
        vm = a_vm(name, "creating", ready=False)
        for key in (
            "image",
            "vcpus",
            "memory_mib",
            "work_bytes",
            "vmm",
            "network",
            "nat",
            "groups",
            "forwards",
        ):
            setattr(vm.spec, key, getattr(wish, key))
        self.vms.append(vm)

        def done():
            vm.state, vm.ready = ("running", True) if wish.start else ("stopped", False)
            vm.status = a_vm().status if wish.start else vm.status
            vm.status.forwards = [
                schema.Forward(f.host_port or 40000, f.guest_port) for f in wish.forwards
            ]

        return 202, self.begin("vm.create", vm.id, name, CREATE_STAGES, done)

    def plan(self, ref=None, **_):
        if ref is not None and self.vm(ref).state == "running":
            return 200, []
        return 200, [
            schema.PlannedStep("disks", "make disks", ["disks"]),
            schema.PlannedStep("boot", "wait"),
        ]

    def verb(self, ref, verb, body, **_):
        vm = self.vm(ref)
        kind = {"start": schema.VmStart, "restart": schema.VmStart, "stop": schema.VmStop}.get(verb)
        if kind and body:
            self.wishes.append(msgspec.json.decode(body, type=kind))
        if verb == "start" and vm.state == "running":
            raise RefusedError(f"VM {vm.name} is running", hint=f"banger vm stop {vm.name}")
        state = {
            "start": "running",
            "restart": "running",
            "stop": "stopped",
            "pause": "paused",
            "resume": "running",
        }[verb]
        return 202, self.begin(
            f"vm.{verb}", vm.id, vm.name, [verb], lambda: setattr(vm, "state", state)
        )

    def delete(self, ref, **_):
        vm = self.vm(ref)
        return 202, self.begin(
            "vm.delete", vm.id, vm.name, ["stop", "disks"], lambda: self.vms.remove(vm)
        )

    def change(self, ref, body, **_):
        vm = self.vm(ref)
        patch = msgspec.json.decode(body, type=schema.VmPatch)
        if vm.state != "stopped":
            raise RefusedError(f"VM {vm.name} is {vm.state}", hint=f"banger vm stop {vm.name}")
        for key, value in msgspec.structs.asdict(patch).items():
            if value is not msgspec.UNSET:
                setattr(vm if key == "name" else vm.spec, key, value)
        return 200, vm

    def forwards(self, ref, **_):
        vm = self.vm(ref)
        running = vm.state == "running"
        return 200, [
            schema.VmForward(f.host_port, f.guest_port, f.protocol, running)
            for f in vm.status.forwards or vm.spec.forwards
        ]

    def add_forwards(self, ref, body, **_):
        vm = self.vm(ref)
        for f in msgspec.json.decode(body, type=schema.ForwardsAdd).forwards:
            vm.status.forwards.append(
                schema.Forward(f.host_port or 40001, f.guest_port, f.protocol)
            )
        return self.forwards(ref)

    def remove_forward(self, ref, protocol, host_port, **_):
        vm = self.vm(ref)
        gone = [
            f for f in vm.status.forwards if (f.host_port, f.protocol) == (int(host_port), protocol)
        ]
        if not gone:
            raise NotFoundError(f"port {host_port} is no forward of VM {vm.name}", hint="list them")
        vm.status.forwards.remove(gone[0])
        return self.forwards(ref)

    def build(self, body, **_):
        wish = msgspec.json.decode(body, type=schema.ImageBuild)
        image = an_image(wish.name or Path(wish.recipe).stem)

        return 202, self.begin(
            "image.build",
            image.id,
            image.name,
            ["resolve", "packages", "rootfs"],
            lambda: self.images.append(image),
        )

    def register(self, body, **_):
        wish = msgspec.json.decode(body, type=schema.ImageRegister)
        if any(image.name == wish.name for image in self.images) and not wish.replace:
            raise RefusedError(f"image name {wish.name!r} is taken", hint="add --replace")
        if wish.base is not None:
            self.find(self.images, wish.base, "image")
        for option in ("rootfs", "kernel", "initramfs", "work_seed"):
            path = getattr(wish, option)
            if path is not None and not Path(path).exists():
                raise NotFoundError(f"{option} {path} does not exist", hint=f"ls -l {path}")
        self.last_registration = wish
        image = an_image(wish.name)
        return 202, self.begin(
            "image.register",
            image.id,
            image.name,
            ["validate", "kernel", "initramfs", "rootfs", "seed", "seal"],
            lambda: self.images.append(image),
        )

    def import_image(self, body, **_):
        wish = msgspec.json.decode(body, type=schema.ImageImport)
        image = an_image(wish.name or "imported")
        return 202, self.begin("image.import", image.id, image.name, ["validate", "seal"], lambda: self.images.append(image))  # fmt: skip

    def export_image(self, ref, body, **_):
        msgspec.json.decode(body, type=schema.ImageExport)
        image = self.find(self.images, ref, "image")
        return 202, self.begin("image.export", image.id, image.name, ["write"], lambda: None)

    def promote(self, ref, body, **_):
        vm, wish = self.vm(ref), msgspec.json.decode(body, type=schema.ImagePromote)
        if vm.state != "stopped":
            raise RefusedError(f"VM {vm.name} is {vm.state}", hint=f"banger vm stop {vm.name}")
        if any(image.name == wish.name for image in self.images) and not wish.replace:
            raise RefusedError(f"image name {wish.name!r} is taken", hint="add --replace")
        self.last_promotion = wish
        made = schema.ImageHistory(AT, "promoted", "d" * 12, vm.name)
        image = an_image(wish.name, parent="d" * 12, history=[made], used_by=[])
        stages = ["check", "flatten", "clean", "compact", "seed", "kernel", "seal", "place"]
        return 202, self.begin(
            "vm.promote", vm.id, vm.name, stages, lambda: self.images.append(image)
        )

    def delete_image(self, ref, **_):
        image = self.find(self.images, ref, "image")
        if image.used_by:
            raise RefusedError(
                f"image {image.name} is used by 1 VM", hint=f"banger vm delete {image.used_by[0]}"
            )
        self.images.remove(image)
        return 202, schema.Operation(
            new_id(), "image.delete", image.id, image.name, "succeeded", AT, 1.0, []
        )

    def cancel(self, id, **_):  # noqa: A002
        operation = self.find(self.operations, id, "operation")
        if operation.state not in {"pending", "running"}:
            raise RefusedError(f"operation {id} is over: {operation.state}")
        operation.state = "cancelled"
        self.release()
        return 202, operation

    def info(self, **_):
        return 200, schema.Info(
            self.version,
            "v1",
            os.getpid(),
            AT,
            "/state",
            "/run",
            "tcg",
            "user",
            "slirp4netns",
            len(self.vms),
            [],
        )

    def logs(self, ref, query, **_):
        self.vm(ref)
        text = self.console if query.get("source") == "console" else b"vmm says\n"
        return 200, text[-int(query["tail_bytes"]) :] if int(query["tail_bytes"]) else b""

    def guest_path(self, path):
        return self.root / path.lstrip("/")

    def get_files(self, ref, query, **_):
        self.vm(ref)
        path = self.guest_path(query["path"])
        if not os.path.lexists(path):
            raise NotFoundError(
                f"{query['path']} does not exist in the guest", hint="banger vm exec NAME -- ls"
            )
        if hasattr(self, "archive"):
            return 200, self.archive
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.add(path, path.name if query["path"] != "/" else ".")
        return 200, buffer.getvalue()

    def put_files(self, ref, query, body, **_):
        self.vm(ref)
        path = self.guest_path(query["path"])
        if not path.is_dir():
            raise NotFoundError(
                f"{query['path']} is no directory in the guest",
                hint="look: banger vm exec NAME -- ls",
            )
        with tarfile.open(fileobj=io.BytesIO(body)) as archive:
            self.last_members = archive.getmembers()
            archive.extractall(path, **FILTER)
        return 204, b""

    def prune(self, body, **_):
        wish = msgspec.json.decode(body, type=schema.Prune)
        self.wishes.append(wish)
        wanted = {
            "build",
            "vm",
            *(["image"] if wish.images else []),
            *(["database"] if wish.databases else []),
        }
        found = [item for item in self.leftovers if item.kind in wanted]
        if wish.dry_run:
            return 200, found
        done = []
        for item in found:
            failed = self.fail_at.get(item.name)
            error = failed and schema.Error(failed.code, failed.what, failed.detail, failed.hint)
            done.append(msgspec.structs.replace(item, removed=not failed, error=error))
        self.leftovers = [item for item in self.leftovers if item not in found]
        return 200, done

    def tell_health(self, ref, **_):
        if "health" in self.hold:
            self._release.wait(60)
        return 200, self.vm(ref) and self.health

    def audit_fix(self, **_):
        able = {True: lambda item: msgspec.structs.replace(item, fixed=True, did=f"{item.name} removed"), False: lambda item: item}  # fmt: skip
        found = [able[item.remedy != "none"](item) for item in self.residue]
        self.residue = [item for item in found if not item.fixed]
        return 200, found

    TABLE = {  # noqa: RUF012  a table
        routes.INFO: info,
        routes.VMS_LIST: lambda self, **_: (200, self.vms),
        routes.VMS_CREATE: create,
        routes.VM_SHOW: lambda self, ref, **_: (200, self.vm(ref)),
        routes.VM_SET: change,
        routes.VM_DELETE: delete,
        routes.VM_HEALTH: tell_health,
        routes.VM_STATS: lambda self, ref, **_: (200, self.vm(ref) and self.stats),
        routes.VM_PORTS: lambda self, ref, **_: (200, self.vm(ref) and self.ports),
        routes.VM_FORWARDS: forwards,
        routes.VM_FORWARDS_ADD: add_forwards,
        routes.VM_FORWARDS_REMOVE: remove_forward,
        routes.VM_LOGS: logs,
        routes.VM_FILES_GET: get_files,
        routes.VM_FILES_PUT: put_files,
        routes.IMAGES_LIST: lambda self, **_: (200, self.images),
        routes.IMAGES_BUILD: build,
        routes.IMAGES_REGISTER: register,
        routes.VM_PROMOTE: promote,
        routes.IMAGES_IMPORT: import_image,
        routes.IMAGE_EXPORT: export_image,
        routes.IMAGE_SHOW: lambda self, ref, **_: (200, self.find(self.images, ref, "image")),
        routes.PLAN_IMAGE_BUILD: lambda self, **_: (200, IMAGE_PLAN),
        routes.IMAGE_SBOM: lambda self, ref, **_: (
            200,
            self.find(self.images, ref, "image") and {"spdxVersion": "SPDX-2.3", "name": ref},
        ),
        routes.IMAGE_DIFF: lambda self, ref, other, **_: (
            200,
            self.find(self.images, ref, "image") and image_diff(ref, other),
        ),
        routes.IMAGE_DELETE: delete_image,
        routes.OPERATIONS_LIST: lambda self, query, **_: (
            200,
            self.operations[: int(query["limit"])],
        ),
        routes.PLAN_CREATE: lambda self, **values: self.plan(**values),
        routes.PLAN_START: lambda self, **values: self.plan(**values),
        routes.OPERATION_SHOW: lambda self, **values: (
            200,
            self.find(self.operations, values["id"], "operation"),
        ),
        routes.OPERATION_CANCEL: cancel,
        routes.DISK_USAGE: lambda self, **_: (200, self.usage),
        routes.PRUNE: prune,
        routes.AUDIT: lambda self, **_: (200, self.residue),
        routes.AUDIT_FIX: audit_fix,
        routes.METRICS: lambda self, **_: (200, b"banger_vms 0\n"),
    }
    for _verb in ("start", "stop", "restart", "pause", "resume"):
        TABLE[getattr(routes, f"VM_{_verb.upper()}")] = lambda self, verb=_verb, **values: (
            self.verb(verb=verb, **values)
        )

    def route(self, method, path):
        """The route and its values; specific paths first."""
        got = path.split("/")
        for route in sorted(routes.ALL, key=lambda route: route.path.count("{")):
            parts = route.path.split("/")
            if route.method == method and len(parts) == len(got):
                values = {
                    p[1:-1]: urllib.parse.unquote(g)
                    for p, g in zip(parts, got, strict=True)
                    if p.startswith("{")
                }
                if all(p == g or p.startswith("{") for p, g in zip(parts, got, strict=True)):
                    return route, values
        raise NotFoundError(f"there is no {method} {path}")


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def finish_request(self, request, client_address):
        head = b""
        while b"\r\n\r\n" not in head:
            more = request.recv(65536, socket.MSG_PEEK)
            if not more or more == head:
                break
            head = more
        if b"upgrade: websocket" in head.lower():
            _web_socket(self.daemon, request)
        else:
            _Handler(request, ("", 0), self)

    def handle_error(self, request, client_address):
        pass  # a client that went away


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "fake"

    def log_message(self, *_):
        pass

    def _body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            collected = b""
            while size := int(self.rfile.readline(), 16):
                collected += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return collected
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _any(self):
        daemon = self.server.daemon
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        try:
            route, values = daemon.route(self.command, url.path)
            daemon.requests.append((self.command, url.path, query))
            if (self.command, url.path) in daemon.raw:
                self._send(*daemon.raw[self.command, url.path])
                return
            if route is routes.OPERATION_EVENTS:
                self._events(daemon.find(daemon.operations, values["id"], "operation"))
                return
            if route is routes.EVENTS:
                self._all_events()
                return
            body = self._body()
            status, answer = daemon.TABLE[route](daemon, query=query, body=body, **values)
        except msgspec.MsgspecError as error:
            self._problem(InvalidInputError("not understood", detail=str(error)))
        except BangerError as error:
            self._problem(error)
        else:
            self._send(status, answer if isinstance(answer, bytes) else msgspec.json.encode(answer))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any  # noqa: N815  http.server's names

    def _problem(self, error):
        self.close_connection = True
        self._send(
            error.http_status,
            msgspec.json.encode(schema.Error(error.code, error.what, error.detail, error.hint)),
        )

    def _send(self, status, body):
        self.send_response(status)
        self.send_header("Banger-Version", self.server.daemon.version)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _all_events(self):
        """What ``daemon.happenings`` has, then the end, as if the daemon had ended."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.close_connection = True
        for name, body in (("hello", {}), *self.server.daemon.happenings):
            data = msgspec.json.encode(body)
            self.wfile.write(b"event: " + name.encode() + b"\r\ndata: " + data + b"\r\n\r\n")

    def _events(self, operation):
        daemon = self.server.daemon
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.close_connection = True
        sent, before = 0, None
        while True:
            with daemon.changed:
                now = msgspec.json.encode(operation)
                if now == before:
                    daemon.changed.wait(1)
                    continue
            if daemon.cut_events_after is not None and sent >= daemon.cut_events_after:
                return
            before = now
            stage = operation.stages[-1] if operation.stages else None
            self.wfile.write(
                b"event: operation\r\ndata: "
                + msgspec.json.encode(schema.OperationEvent(stage, operation))
                + b"\r\n\r\n"
            )
            sent += 1
            if (
                b'"state":"running"' not in now.split(b'"stages"')[0]
                and b'"state":"pending"' not in now.split(b'"stages"')[0]
            ):
                return


def _web_socket(daemon, request):
    connection = ServerConnection(
        request, ServerProtocol(max_size=1 << 20), daemon.web_sockets, ping_interval=None
    )
    connection.handshake()
    url = urllib.parse.urlsplit(connection.request.path)
    query = dict(urllib.parse.parse_qsl(url.query))
    daemon.requests.append(("WS", url.path, query))
    try:
        route, values = daemon.route("WS", url.path)
        vm = daemon.vm(values["ref"])
        if vm.state != "running":
            raise RefusedError(f"VM {vm.name} is {vm.state}", hint=f"banger vm start {vm.name}")
        if route is routes.VM_CONSOLE:
            connection.send(daemon.console[-int(query["tail_bytes"]) :])
        elif route is routes.VM_PROXY:
            daemon.tcp[int(query["port"])](connection)
        else:
            _exec(
                daemon, connection, msgspec.json.decode(connection.recv(), type=schema.ExecRequest)
            )
    except BangerError as error:
        connection.send(
            msgspec.json.encode(
                schema.Error(error.code, error.what, error.detail, error.hint)
            ).decode()
        )
    except (ConnectionClosed, KeyError):
        pass
    finally:
        connection.close()


def _exec(daemon, connection, request):
    daemon.last_exec = request
    env = {"PATH": os.environ["PATH"], **request.env}
    cwd = daemon.guest_path(request.cwd) if request.cwd else daemon.root
    master = None
    try:
        if request.tty:
            master, slave = pty.openpty()
            fcntl.ioctl(
                slave, termios.TIOCSWINSZ, struct.pack("4H", request.rows, request.cols, 0, 0)
            )
            ends = {"stdin": slave, "stdout": slave, "stderr": slave}
        else:
            ends = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(
            request.argv, env=env, cwd=cwd, start_new_session=True, **ends,
            preexec_fn=(lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)) if request.tty else None,  # noqa: PLW1509
        )  # fmt: skip
    except OSError as error:
        connection.send(bytes([FrameType.FAILED]) + str(error).encode())
        return

    def pump(kind, descriptor):
        with contextlib.suppress(OSError, ConnectionClosed):
            while data := os.read(descriptor, 65536):
                connection.send(bytes([kind]) + data)

    def listen():
        stdin = master if request.tty else process.stdin.fileno()
        with contextlib.suppress(ConnectionClosed, OSError, ProcessLookupError):
            while True:
                message = connection.recv()
                kind, payload = message[0], message[1:]
                if kind == FrameType.STDIN:
                    with contextlib.suppress(BrokenPipeError):
                        os.write(stdin, payload) if request.tty else (
                            process.stdin.write(payload),
                            process.stdin.flush(),
                        )
                elif kind == FrameType.STDIN_EOF and not request.tty:
                    process.stdin.close()
                elif kind == FrameType.RESIZE:
                    fcntl.ioctl(
                        stdin, termios.TIOCSWINSZ, payload[1::-1] + payload[3:1:-1] + bytes(4)
                    )
                    os.killpg(process.pid, signal.SIGWINCH)
                elif kind == FrameType.SIGNAL:
                    os.killpg(process.pid, payload[0])
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    if request.tty:
        os.close(slave)
        pumps = [threading.Thread(target=pump, args=(FrameType.STDOUT, master))]
    else:
        pumps = [
            threading.Thread(target=pump, args=(FrameType.STDOUT, process.stdout.fileno())),
            threading.Thread(target=pump, args=(FrameType.STDERR, process.stderr.fileno())),
        ]
    listener = threading.Thread(target=listen, daemon=True)
    for thread in (*pumps, listener):
        thread.start()
    status = process.wait()
    for thread in pumps:
        thread.join(30)
    with contextlib.suppress(ConnectionClosed):
        connection.send(bytes([FrameType.EXIT, status if status >= 0 else 128 - status]))
    connection.close()
    listener.join(5)
    if master is not None:
        os.close(master)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
