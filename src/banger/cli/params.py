"""Values that users type, checked before the daemon is asked; and names for shell completion."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import click

from banger.model.compat import override
from banger.model.errors import BangerError, InvalidInputError
from banger.model.units import MIB, parse_size

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from banger.api.routes import Route
    from banger.api.schema import Forward, ProtocolName, Service

COMPLETION_S = 2.0


class Size(click.ParamType):  # type: ignore[type-arg]  # generic in newer clicks only
    """``2G`` as bytes."""

    name = "size"

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes; InvalidInputError."""
        what = f"--{param.name.replace('_', '-')}" if param is not None and param.name else "size"
        return value if isinstance(value, int) else parse_size(value, what=what)


class Name(click.ParamType):  # type: ignore[type-arg]  # generic in newer clicks only
    """A new name for a VM or an image."""

    name = "name"

    def __init__(self, what: str = "VM") -> None:
        self._what = what

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name; InvalidInputError."""
        from banger.model.ids import check_name  # noqa: PLC0415  pulls in hashlib

        return check_name(value, what=self._what)


class ForwardParam(click.ParamType):  # type: ignore[type-arg]  # generic in newer clicks only
    """``[HOST:]GUEST[/tcp|/udp]`` as an API struct."""

    name = "[host:]guest[/udp]"

    @override
    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Forward:
        """The forward; InvalidInputError."""
        from banger.api import schema  # noqa: PLC0415  only for those who forward
        from banger.model import spec  # noqa: PLC0415  as above

        parsed = spec.Forward.parse(value)
        return schema.Forward(parsed.host_port, parsed.guest_port, parsed.protocol.value)


class HostPortParam(click.ParamType):  # type: ignore[type-arg]  # generic in newer clicks only
    """``HOST[/tcp|/udp]`` as protocol and port."""

    name = "host[/udp]"

    @override
    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[ProtocolName, int]:
        """Protocol and port; InvalidInputError."""
        from banger.model import spec  # noqa: PLC0415  as above

        protocol, port = spec.parse_host_port(value)
        return protocol.value, port

    @override
    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The ports of the VM that the command line names, as far as the daemon, if it runs, knows them."""
        from click.shell_completion import CompletionItem  # noqa: PLC0415  only while completing

        ref = ctx.params.get("name") or next(iter(ctx.args), None)  # --remove still lacks its value
        found = host_ports(ref) if isinstance(ref, str) else []
        return [CompletionItem(port) for port in found if port.startswith(incomplete)]


class ServiceParam(click.ParamType):  # type: ignore[type-arg]  # generic in newer clicks only
    """``NAME:PORT[/PATH]`` as an API struct; with a path the service must answer a GET of it."""

    name = "name:port[/path]"

    @override
    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Service:
        """The service; InvalidInputError. Name, port and path themselves are checked by the daemon."""
        from banger.api import schema  # noqa: PLC0415  only for those who register images

        name, _, rest = value.partition(":")
        port, slash, path = rest.partition("/")
        if not name or not (port.isascii() and port.isdigit()):
            raise InvalidInputError(
                f"service {value!r} is not NAME:PORT[/PATH]",
                hint="write, for example, web:8080 or web:8080/health",
            )
        return schema.Service(name, int(port), slash + path)


class Ref(click.ParamType):  # type: ignore[type-arg]  # generic in newer clicks only
    """A reference to an object that exists: completes the names that the daemon, if it runs, knows."""

    name = "name"

    def __init__(self, what: str = "VM") -> None:
        self._what = what

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The reference; InvalidInputError if nothing can have it."""
        from banger.client.refs import check_ref  # noqa: PLC0415  light, but used by few

        return check_ref(value, what=self._what)

    @override
    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Names that begin with ``incomplete``."""
        from click.shell_completion import CompletionItem  # noqa: PLC0415  only while completing

        return [CompletionItem(name) for name in known_names(self._what, incomplete)]


def known_names(what: str, incomplete: str) -> list[str]:
    """Names of VMs, images or operations; nothing where no daemon runs: completion must not start one."""
    from banger.api import routes  # noqa: PLC0415  only while completing

    route, key = {
        "VM": (routes.VMS_LIST, "name"),
        "image": (routes.IMAGES_LIST, "name"),
        "operation": (routes.OPERATIONS_LIST, "id"),
    }[what]
    found = [str(item[key]) for item in _fetched(route)]
    return [name for name in found if name.startswith(incomplete)]


def host_ports(ref: str) -> list[str]:
    """The ports of the host that lead to a VM, as one writes them."""
    from banger.api import routes  # noqa: PLC0415  only while completing

    found = _fetched(routes.VM_FORWARDS, ref=ref)
    return [str(f["host_port"]) + ("/udp" if f["protocol"] == "udp" else "") for f in found]


def _fetched(route: Route, **values: str) -> list[dict[str, Any]]:
    from banger.client.autostart import connect_if_running  # noqa: PLC0415  only while completing
    from banger.client.refs import check_ref  # noqa: PLC0415  as above
    from banger.host.config import load_config  # noqa: PLC0415  as above

    try:
        for ref in values.values():
            check_ref(ref)
        transport = connect_if_running(load_config(warn=lambda _: None))
        if transport is None:
            return []
        transport.timeout_s = COMPLETION_S
        found = transport.fetch(route, values)
    except (BangerError, OSError):
        return []
    return list(found)


SIZE = Size()
FORWARD = ForwardParam()
HOST_PORT = HostPortParam()
SERVICE = ServiceParam()
VM = Ref()
IMAGE = Ref("image")
OPERATION = Ref("operation")
WAIT = click.option(
    "--wait",
    type=click.Choice(["booted", "agent", "services"]),
    default="services",
    help="How far to wait for the guest.  [default: services]",
)
TIMEOUT = click.FloatRange(min=0, max=86400, min_open=True)


def whole_mib(size_bytes: int, option: str) -> int:
    """``size_bytes`` in MiB; InvalidInputError if that is no whole number."""
    if size_bytes % MIB:
        raise InvalidInputError(
            f"{option} {size_bytes} is not a whole number of MiB",
            hint="write it as, for example, 2G",
        )
    return size_bytes // MIB


_ENV = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def parse_env(pairs: tuple[str, ...]) -> dict[str, str]:
    """``K=V`` pairs; a bare ``K`` takes the caller's own value. InvalidInputError."""
    found = {}
    for pair in pairs:
        key, is_pair, value = pair.partition("=")
        if _ENV.fullmatch(key) is None or "\0" in value:
            raise InvalidInputError(
                f"environment {pair!r} is not KEY=VALUE", hint="write, for example, -e LANG=C.UTF-8"
            )
        if is_pair:
            found[key] = value
        elif key in os.environ:
            found[key] = os.environ[key]
    return found
