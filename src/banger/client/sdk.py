"""`Client`: one method a route of the API, typed by its structs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import msgspec

from banger.api import routes, schema
from banger.api.malformed import NOT_JSON
from banger.api.routes import Route
from banger.client import follow
from banger.client.refs import check_ref
from banger.client.transport import TIMEOUT_S, Transport, unreachable
from banger.host.config import Config, load_config
from banger.model.errors import BangerError

if TYPE_CHECKING:  # websockets and http.client are for those who stream
    import http.client

    from banger.client import files
    from banger.client.happenings import Happened
    from banger.client.streams import ConsoleStream, ExecStream, Finished, ProxyStream

_T = TypeVar("_T")
SLOW_S = 600.0  # answers that wait for work on disks


class Client:
    """The daemon at ``socket_path``. Every method raises BangerError; every call has a deadline."""

    def __init__(
        self,
        socket_path: Path | str,
        *,
        timeout_s: float = TIMEOUT_S,
        transport: Transport | None = None,
    ) -> None:
        self.transport = transport or Transport(Path(socket_path), timeout_s=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of connections."""
        self.transport.close()

    def _call(
        self,
        kind: type[_T],
        route: Route,
        body: msgspec.Struct | None = None,
        *,
        timeout_s: float | None = None,
        query: dict[str, str | int] | None = None,
        **values: str,
    ) -> _T:
        data = None if body is None else msgspec.json.encode(body)
        answer = self.transport.call(route, values, body=data, query=query, timeout_s=timeout_s)
        return decode(answer, kind)

    def info(self) -> schema.Info:
        """The daemon and its host."""
        return self._call(schema.Info, routes.INFO)

    def metrics(self) -> str:
        """Counts in the Prometheus text format."""
        return self.transport.call(routes.METRICS).decode()

    def vms(self) -> list[schema.Vm]:
        """All VMs, oldest first."""
        return self._call(list[schema.Vm], routes.VMS_LIST)

    def vm(self, ref: str) -> schema.Vm:
        """One VM by name, id or unique id prefix."""
        return self._call(schema.Vm, routes.VM_SHOW, ref=check_ref(ref))

    def create_vm(self, wish: schema.VmCreate) -> schema.Operation:
        """Begin vm.create."""
        return self._call(schema.Operation, routes.VMS_CREATE, wish)

    def plan_create(self, wish: schema.VmCreate) -> list[schema.PlannedStep]:
        """What vm.create would do."""
        return self._call(list[schema.PlannedStep], routes.PLAN_CREATE, wish)

    def plan_start(self, ref: str) -> list[schema.PlannedStep]:
        """What vm.start would do; nothing for a VM that runs."""
        return self._call(list[schema.PlannedStep], routes.PLAN_START, ref=check_ref(ref))

    def plan_image(self, wish: schema.ImageBuild) -> schema.ImagePlan:
        """What image.build would do."""
        return self._call(schema.ImagePlan, routes.PLAN_IMAGE_BUILD, wish)

    def image_sbom(self, ref: str) -> dict[str, object]:
        """An image's inventory: SPDX 2.3."""
        return self._call(
            dict[str, object], routes.IMAGE_SBOM, timeout_s=SLOW_S, ref=check_ref(ref)
        )

    def image_diff(self, ref: str, other: str) -> schema.ImageDiff:
        """What the image ``other`` has otherwise than ``ref``."""
        return self._call(
            schema.ImageDiff,
            routes.IMAGE_DIFF,
            timeout_s=SLOW_S,
            ref=check_ref(ref),
            other=check_ref(other),
        )

    def set_vm(self, ref: str, patch: schema.VmPatch) -> schema.Vm:
        """Change a VM, of one that runs its forwards and nat only; waits for its disks."""
        return self._call(schema.Vm, routes.VM_SET, patch, timeout_s=SLOW_S, ref=check_ref(ref))

    def delete_vm(self, ref: str) -> schema.Operation:
        """Begin vm.delete."""
        return self._call(schema.Operation, routes.VM_DELETE, ref=check_ref(ref))

    def start_vm(
        self, ref: str, *, timeout_s: float | None = None, wait: schema.WaitName = "services"
    ) -> schema.Operation:
        """Begin vm.start; ``timeout_s`` bounds the wait for readiness, which goes as far as ``wait``."""
        wish = schema.VmStart(timeout_s, wait)
        return self._call(schema.Operation, routes.VM_START, wish, ref=check_ref(ref))

    def restart_vm(
        self, ref: str, *, timeout_s: float | None = None, wait: schema.WaitName = "services"
    ) -> schema.Operation:
        """Begin vm.restart."""
        wish = schema.VmStart(timeout_s, wait)
        return self._call(schema.Operation, routes.VM_RESTART, wish, ref=check_ref(ref))

    def stop_vm(
        self, ref: str, *, force: bool = False, timeout_s: float | None = None
    ) -> schema.Operation:
        """Begin vm.stop; ``force`` ends the VMM at once."""
        wish = schema.VmStop(force, timeout_s)
        return self._call(schema.Operation, routes.VM_STOP, wish, ref=check_ref(ref))

    def pause_vm(self, ref: str) -> schema.Operation:
        """Begin vm.pause."""
        return self._call(schema.Operation, routes.VM_PAUSE, ref=check_ref(ref))

    def resume_vm(self, ref: str) -> schema.Operation:
        """Begin vm.resume."""
        return self._call(schema.Operation, routes.VM_RESUME, ref=check_ref(ref))

    def health(self, ref: str) -> schema.Health:
        """What the guest says of itself."""
        return self._call(schema.Health, routes.VM_HEALTH, ref=check_ref(ref))

    def stats(self, ref: str) -> schema.Stats:
        """Use of resources."""
        return self._call(schema.Stats, routes.VM_STATS, ref=check_ref(ref))

    def ports(self, ref: str) -> list[schema.Port]:
        """Sockets that listen inside the guest."""
        return self._call(list[schema.Port], routes.VM_PORTS, ref=check_ref(ref))

    def forwards(self, ref: str) -> list[schema.VmForward]:
        """A VM's forwards with their ports of the host."""
        return self._call(list[schema.VmForward], routes.VM_FORWARDS, ref=check_ref(ref))

    def add_forwards(self, ref: str, forwards: list[schema.Forward]) -> list[schema.VmForward]:
        """Add forwards to a VM that runs or is at rest; all that it has then."""
        wish = schema.ForwardsAdd(forwards)
        return self._call(list[schema.VmForward], routes.VM_FORWARDS_ADD, wish, ref=check_ref(ref))

    def remove_forward(
        self, ref: str, host_port: int, protocol: schema.ProtocolName = "tcp"
    ) -> list[schema.VmForward]:
        """Remove the forward at a port of the host; those that are left."""
        return self._call(
            list[schema.VmForward],
            routes.VM_FORWARDS_REMOVE,
            ref=check_ref(ref),
            protocol=protocol,
            host_port=str(host_port),
        )

    @contextmanager
    def logs(
        self, ref: str, *, source: str = "console", tail_bytes: int = 64 << 10, follow: bool = False
    ) -> Iterator[Iterator[bytes]]:
        """The end of a log in pieces; with ``follow`` also what comes after, until the VM is gone."""
        from banger.client.http_stream import open_stream  # noqa: PLC0415  see above

        query: dict[str, str | int] = {
            "source": source,
            "tail_bytes": tail_bytes,
            "follow": "true" if follow else "false",
        }
        connection, response = open_stream(
            self.transport,
            routes.VM_LOGS,
            {"ref": check_ref(ref)},
            query=query,
            timeout_s=None if follow else TIMEOUT_S,
        )
        try:
            yield self._pieces(response)
        finally:
            connection.close()

    def _pieces(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        from banger.client.http_stream import LOST  # noqa: PLC0415  see above

        try:
            while piece := response.read1(1 << 16):
                yield piece
        except LOST as error:
            raise unreachable(self.transport.path, error) from error

    @contextmanager
    def get_files(self, ref: str, path: str) -> Iterator[files.TarReader]:
        """A tar stream of the guest's absolute ``path``; members are named from its last component on."""
        from banger.client import files  # noqa: PLC0415  see above

        with files.get(self.transport, check_ref(ref), path) as reader:
            yield reader

    @contextmanager
    def put_files(self, ref: str, path: str) -> Iterator[files.TarWriter]:
        """Write a tar stream into what this gives; it is unpacked into the guest's directory ``path``.

        The block's end waits until the guest has everything; an exception in it breaks the transfer off.
        """
        from banger.client import files  # noqa: PLC0415  see above

        with files.put(self.transport, check_ref(ref), path) as writer:
            yield writer

    def exec(self, ref: str, request: schema.ExecRequest) -> ExecStream:
        """Start a command in the guest; frames as in `api.frames`."""
        from banger.client.streams import ExecStream  # noqa: PLC0415  see above

        return ExecStream.open(self.transport.path, check_ref(ref), request)

    def run(
        self,
        ref: str,
        request: schema.ExecRequest,
        *,
        input: bytes = b"",  # noqa: A002  as subprocess.run
        timeout_s: float = SLOW_S,
    ) -> Finished:
        """Run a command to its end: status, stdout and stderr. TimeoutError after ``timeout_s``."""
        from banger.client.streams import run_to_end  # noqa: PLC0415  see above

        with self.exec(ref, request) as stream:
            return run_to_end(stream, input, timeout_s)

    def proxy(self, ref: str, port: int) -> ProxyStream:
        """A byte stream to a TCP port of the guest."""
        from banger.client.streams import ProxyStream  # noqa: PLC0415  see above

        return ProxyStream.open(self.transport.path, check_ref(ref), port)

    def console(self, ref: str, *, tail_bytes: int = 64 << 10) -> ConsoleStream:
        """The guest's serial console as it is written, from ``tail_bytes`` before its end on."""
        from banger.client.streams import ConsoleStream  # noqa: PLC0415  see above

        return ConsoleStream.open(self.transport.path, check_ref(ref), tail_bytes)

    def images(self) -> list[schema.Image]:
        """All images, oldest first."""
        return self._call(list[schema.Image], routes.IMAGES_LIST)

    def image(self, ref: str) -> schema.Image:
        """One image."""
        return self._call(schema.Image, routes.IMAGE_SHOW, ref=check_ref(ref, what="image"))

    def build_image(self, wish: schema.ImageBuild) -> schema.Operation:
        """Begin image.build."""
        return self._call(schema.Operation, routes.IMAGES_BUILD, wish)

    def register_image(self, wish: schema.ImageRegister) -> schema.Operation:
        """Begin image.register: an image out of files on the daemon's host."""
        return self._call(schema.Operation, routes.IMAGES_REGISTER, wish)

    def promote_vm(self, ref: str, wish: schema.ImagePromote) -> schema.Operation:
        """Begin vm.promote: an image out of the disks of a VM at rest."""
        return self._call(schema.Operation, routes.VM_PROMOTE, wish, ref=check_ref(ref))

    def import_image(self, wish: schema.ImageImport) -> schema.Operation:
        """Begin image.import: an image out of a file or OCI layout on the daemon's host."""
        return self._call(schema.Operation, routes.IMAGES_IMPORT, wish)

    def export_image(self, ref: str, wish: schema.ImageExport) -> schema.Operation:
        """Begin image.export: an image to a file or OCI layout on the daemon's host."""
        return self._call(
            schema.Operation, routes.IMAGE_EXPORT, wish, ref=check_ref(ref, what="image")
        )

    def delete_image(self, ref: str) -> schema.Operation:
        """Delete an image; the operation is over when this returns."""
        return self._call(
            schema.Operation,
            routes.IMAGE_DELETE,
            timeout_s=SLOW_S,
            ref=check_ref(ref, what="image"),
        )

    def disk_usage(self) -> schema.DiskUsage:
        """What VMs and images take of the disk."""
        return self._call(schema.DiskUsage, routes.DISK_USAGE, timeout_s=SLOW_S)

    def prune(self, wish: schema.Prune) -> list[schema.Leftover]:
        """Remove what nothing uses, or with ``dry_run`` only say it."""
        return self._call(list[schema.Leftover], routes.PRUNE, wish, timeout_s=SLOW_S)

    def audit(self) -> list[schema.Residue]:
        """Where record and host differ."""
        return self._call(list[schema.Residue], routes.AUDIT, timeout_s=SLOW_S)

    def fix(self) -> list[schema.Residue]:
        """Mend what `audit` finds, and say what became of it."""
        return self._call(list[schema.Residue], routes.AUDIT_FIX, timeout_s=SLOW_S)

    def operations(self, *, limit: int = 100) -> list[schema.Operation]:
        """The newest operations, newest first."""
        return self._call(list[schema.Operation], routes.OPERATIONS_LIST, query={"limit": limit})

    def operation(self, ref: str) -> schema.Operation:
        """One operation."""
        return self._call(
            schema.Operation, routes.OPERATION_SHOW, id=check_ref(ref, what="operation")
        )

    def cancel(self, ref: str) -> schema.Operation:
        """Ask an operation to end and undo what it made."""
        return self._call(
            schema.Operation, routes.OPERATION_CANCEL, id=check_ref(ref, what="operation")
        )

    def events(self) -> Iterator[Happened]:
        """Everything that happens from now on, until the daemon ends; see `happenings.happenings`."""
        from banger.client.happenings import happenings  # noqa: PLC0415  few follow everything

        return happenings(self.transport)

    def follow(
        self, operation: schema.Operation, *, timeout_s: float | None = None
    ) -> Iterator[schema.Operation]:
        """The operation each time it changes, the final one last; see `follow.follow`."""
        return follow.follow(self.transport, operation, timeout_s=timeout_s)

    def wait(
        self, operation: schema.Operation, *, timeout_s: float | None = None
    ) -> schema.Operation:
        """Return the operation when it has succeeded; raises its error if it has not."""
        return follow.outcome(list(self.follow(operation, timeout_s=timeout_s))[-1])


def decode(data: bytes, kind: type[_T]) -> _T:
    """``data`` as ``kind``; BangerError where the daemon says something else."""
    try:
        return msgspec.json.decode(data, type=kind)
    except NOT_JSON as error:
        raise BangerError(
            "the daemon's answer was not understood",
            detail=str(error),
            hint="restart it if it is of another version: banger daemon stop",
        ) from error


def connect(config: Config | None = None) -> Client:
    """A client of this user's daemon, which is started if it does not run."""
    from banger.client.autostart import ensure_daemon  # noqa: PLC0415  starting is rare and pulls in asyncio

    config = config or load_config()
    return Client(config.socket_path, transport=ensure_daemon(config))
