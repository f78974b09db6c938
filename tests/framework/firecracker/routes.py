"""From a request to what it asks of the VMM, with Firecracker's words for requests that ask for nothing.

As in Firecracker the first part of a path decides; what follows where nothing is expected is ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.framework.firecracker import schema
from tests.framework.firecracker.jsontext import JsonError, loads
from tests.framework.firecracker.shapes import Struct, Version

NOT_HERE = "This stand-in for Firecracker has no"


class FaultError(Exception):
    """An answer that refuses: its fault_message and HTTP status."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked: the action's name and its values. ``deprecated`` says what of it is old."""

    action: str
    values: dict[str, Any] = field(default_factory=dict)
    deprecated: str = ""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of one path, by its name in the official description."""

    method: str
    path: str
    action: str
    body: Struct | None = None
    since: Version = ()
    id_field: str = ""  # the body's field that repeats the path's id


_1_14, _1_16 = schema.V1_14, schema.V1_16
ENDPOINTS = (
    Endpoint("GET", "/", "describe"),
    Endpoint("GET", "/version", "version"),
    Endpoint("GET", "/vm/config", "full-config"),
    Endpoint("GET", "/machine-config", "get-machine"),
    Endpoint("GET", "/balloon", "get-balloon"),
    Endpoint("GET", "/balloon/statistics", "get-balloon-stats"),
    Endpoint("GET", "/balloon/hinting/status", "get-hinting", since=_1_14),
    Endpoint("GET", "/mmds", "get-mmds"),
    Endpoint("GET", "/hotplug/memory", "get-hotplug", since=_1_14),
    Endpoint("PUT", "/actions", "act", schema.ACTION),
    Endpoint("PUT", "/balloon", "put-balloon", schema.BALLOON),
    Endpoint("PUT", "/boot-source", "put-boot", schema.BOOT_SOURCE),
    Endpoint("PUT", "/cpu-config", "put-cpu", schema.CPU_CONFIG),
    Endpoint("PUT", "/drives/{drive_id}", "put-drive", schema.DRIVE, id_field="drive_id"),
    Endpoint("PUT", "/pmem/{id}", "put-pmem", schema.PMEM, since=_1_14, id_field="id"),
    Endpoint("PUT", "/logger", "put-logger", schema.LOGGER),
    Endpoint("PUT", "/serial", "put-serial", schema.SERIAL, since=_1_14),
    Endpoint("PUT", "/machine-config", "put-machine", schema.MACHINE),
    Endpoint("PUT", "/metrics", "put-metrics", schema.METRICS),
    Endpoint("PUT", "/mmds", "put-mmds"),
    Endpoint("PUT", "/mmds/config", "put-mmds-config", schema.MMDS_CONFIG),
    Endpoint("PUT", "/network-interfaces/{iface_id}", "put-network", schema.NETWORK, id_field="iface_id"),
    Endpoint("PUT", "/snapshot/create", "create-snapshot", schema.SNAPSHOT_CREATE),
    Endpoint("PUT", "/snapshot/load", "load-snapshot", schema.SNAPSHOT_LOAD),
    Endpoint("PUT", "/vsock", "put-vsock", schema.VSOCK),
    Endpoint("PUT", "/entropy", "put-entropy", schema.ENTROPY),
    Endpoint("PUT", "/hotplug/memory", "put-hotplug", schema.HOTPLUG, since=_1_14),
    Endpoint("PATCH", "/balloon", "patch-balloon", schema.BALLOON_UPDATE),
    Endpoint("PATCH", "/balloon/statistics", "patch-balloon-stats", schema.BALLOON_STATS),
    Endpoint("PATCH", "/balloon/hinting/start", "start-hinting", schema.HINTING_START, since=_1_14),
    Endpoint("PATCH", "/balloon/hinting/stop", "stop-hinting", since=_1_14),
    Endpoint("PATCH", "/drives/{drive_id}", "patch-drive", schema.DRIVE_UPDATE, id_field="drive_id"),
    Endpoint("PATCH", "/machine-config", "patch-machine", schema.MACHINE_UPDATE),
    Endpoint("PATCH", "/mmds", "patch-mmds"),
    Endpoint("PATCH", "/network-interfaces/{iface_id}", "patch-network", schema.NETWORK_UPDATE, id_field="iface_id"),
    Endpoint("PATCH", "/pmem/{id}", "patch-pmem", schema.PMEM_UPDATE, since=_1_16, id_field="id"),
    Endpoint("PATCH", "/vm", "patch-vm", schema.VM_STATE),
    Endpoint("PATCH", "/hotplug/memory", "patch-hotplug", schema.HOTPLUG_SIZE, since=_1_14),
)  # fmt: skip
_BY_NAME = {(endpoint.method, endpoint.path): endpoint for endpoint in ENDPOINTS}
_EMPTY = {"PUT": "Empty PUT request.", "PATCH": "Empty PATCH request."}
_WITH_ID = {"drives": "drive_id", "pmem": "id", "network-interfaces": "iface_id"}
_NESTED = {"GET": ("balloon", "vm", "hotplug"), "PUT": ("mmds", "snapshot", "hotplug"), "PATCH": ("hotplug",)}  # fmt: skip
_OLD = {
    "put-machine": ("cpu_template", "PUT /machine-config: cpu_template field is deprecated."),
    "patch-machine": ("cpu_template", "PATCH /machine-config: cpu_template field is deprecated."),
    "put-vsock": ("vsock_id", "PUT /vsock: vsock_id field is deprecated."),
}


def route(method: str, target: str, body: bytes, version: Version) -> Call:
    """What the request asks for; FaultError."""
    tokens = target.lstrip("/").removesuffix("/").split("/")
    if method == "GET" and body:
        raise FaultError("GET request cannot have a body.")
    if method in _EMPTY and not body and tokens[:2] != ["balloon", "hinting"]:
        raise FaultError(_EMPTY[method])
    endpoint = _BY_NAME.get((method, _path(method, tokens)))
    if endpoint is None or version < endpoint.since:
        raise FaultError(_unknown(method, tokens, version))
    item = tokens[1] if len(tokens) > 1 else ""
    if endpoint.id_field:
        _check_id(item)
    call = _decode(endpoint, body, version)
    if endpoint.id_field and call.values[endpoint.id_field] != item:
        raise FaultError(_mismatch(endpoint, item, call.values[endpoint.id_field]))
    return call


def _path(method: str, tokens: list[str]) -> str:
    """The path as the official description names it, if there is such a one."""
    first, rest = tokens[0], tokens[1:]
    if first in _WITH_ID:
        return f"/{first}/{{{_WITH_ID[first]}}}"
    match first, rest:
        case "balloon", ["hinting", *more] if method != "PUT":
            return f"/balloon/hinting/{more[0] if more else ''}"
        case "balloon", ["statistics", *_] if method == "PATCH":
            return "/balloon/statistics"
    if rest and first in _NESTED.get(method, ()):
        return f"/{first}/{rest[0]}"
    return f"/{first}"


def _unknown(method: str, tokens: list[str], version: Version) -> str:
    """Firecracker's words for what it does not know."""
    match method, *tokens:
        case (("GET" | "PATCH"), "balloon", "hinting", *more) if version >= _1_14:
            third = more[0] if more else ""
            return f"Unrecognized {method} request path `/hinting/{third}`."
        case ("GET", "balloon", second, *_) | ("PUT", "mmds", second, *_):
            return f"Unrecognized {method} request path `{second}`."
        case "PUT", "snapshot":
            return "Missing snapshot operation type."
        case "PUT", "snapshot", second, *_:
            return f"Invalid request method and/or path: PUT /snapshot/{second}."
    return f"Invalid request method and/or path: {method} {tokens[0]}."


def _check_id(item: str) -> None:
    if not item:
        raise FaultError("The ID cannot be empty.")
    if not all(letter == "_" or letter.isalnum() for letter in item):
        raise FaultError(
            "API Resource IDs can only contain alphanumeric characters and underscores."
        )


def _mismatch(endpoint: Endpoint, item: str, said: str) -> str:
    if endpoint.id_field == "iface_id":
        return f"The id from the path [{item}] does not match the id from the body [{said}]!"
    return "The id from the path does not match the id from the body!"


def _decode(endpoint: Endpoint, body: bytes, version: Version) -> Call:
    try:
        if endpoint.body is None:
            value = loads(body) if body and endpoint.method != "GET" else None
            return Call(endpoint.action, {"value": value})
        values = endpoint.body.decode(body or b"{}", version)
    except JsonError as error:
        raise _json_fault(error.placed(body)) from error
    check = _EXTRA.get(endpoint.action)
    if check is not None:
        check(values)
    return Call(endpoint.action, values, _deprecation(endpoint.action, values))


def _json_fault(why: str) -> FaultError:
    return FaultError(f"An error occurred when deserializing the json body of a request: {why}.")


def _deprecation(action: str, values: dict[str, Any]) -> str:
    if action in _OLD and values[_OLD[action][0]] is not None:
        return _OLD[action][1]
    if action == "put-mmds-config" and values["version"] == "V1":
        return "PUT /mmds/config: V1 is deprecated. Use V2 instead."
    if action == "load-snapshot" and (values["mem_file_path"] or values["enable_diff_snapshots"]):
        return "PUT /snapshot/load: mem_file_path and enable_diff_snapshots fields are deprecated."
    return ""


def _one_memory(values: dict[str, Any]) -> None:
    given = [name for name in ("mem_backend", "mem_file_path") if values[name] is not None]
    if len(given) > 1:
        raise _json_fault(
            "too many fields: either `mem_backend` or `mem_file_path` exclusively is required"
        )
    if not given:
        raise _json_fault("missing field: either `mem_backend` or `mem_file_path` is required")


def _something_to_patch(values: dict[str, Any]) -> None:
    if all(value is None for value in values.values()):
        raise FaultError(_EMPTY["PATCH"])


_EXTRA: dict[str, Callable[[dict[str, Any]], None]] = {
    "load-snapshot": _one_memory,
    "patch-machine": _something_to_patch,
}
