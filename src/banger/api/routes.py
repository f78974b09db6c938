"""The paths of the API as one table; the daemon binds them, the client calls them, a test compares both."""

from __future__ import annotations

from typing import Final, NamedTuple

API_VERSION: Final = "v1"
PREFIX: Final = f"/{API_VERSION}"


class Route(NamedTuple):
    """A method and a path with ``{placeholders}``."""

    method: str
    path: str

    def url(self, **values: str) -> str:
        """The path with its placeholders filled, each quoted as one path segment."""
        if not values:
            return self.path
        from urllib.parse import quote  # noqa: PLC0415  `vm list` needs none

        return self.path.format(**{key: quote(value, safe="") for key, value in values.items()})


INFO = Route("GET", f"{PREFIX}/info")
VMS_LIST = Route("GET", f"{PREFIX}/vms")
VMS_CREATE = Route("POST", f"{PREFIX}/vms")
VM_SHOW = Route("GET", f"{PREFIX}/vms/{{ref}}")
VM_SET = Route("PATCH", f"{PREFIX}/vms/{{ref}}")
VM_DELETE = Route("DELETE", f"{PREFIX}/vms/{{ref}}")
VM_START = Route("POST", f"{PREFIX}/vms/{{ref}}/start")
VM_STOP = Route("POST", f"{PREFIX}/vms/{{ref}}/stop")
VM_RESTART = Route("POST", f"{PREFIX}/vms/{{ref}}/restart")
VM_PAUSE = Route("POST", f"{PREFIX}/vms/{{ref}}/pause")
VM_RESUME = Route("POST", f"{PREFIX}/vms/{{ref}}/resume")
VM_PROMOTE = Route("POST", f"{PREFIX}/vms/{{ref}}/promote")
VM_HEALTH = Route("GET", f"{PREFIX}/vms/{{ref}}/health")
VM_STATS = Route("GET", f"{PREFIX}/vms/{{ref}}/stats")
VM_PORTS = Route("GET", f"{PREFIX}/vms/{{ref}}/ports")
VM_FORWARDS = Route("GET", f"{PREFIX}/vms/{{ref}}/forwards")
VM_FORWARDS_ADD = Route("POST", f"{PREFIX}/vms/{{ref}}/forwards")
VM_FORWARDS_REMOVE = Route("DELETE", f"{PREFIX}/vms/{{ref}}/forwards/{{protocol}}/{{host_port}}")
VM_LOGS = Route(
    "GET", f"{PREFIX}/vms/{{ref}}/logs"
)  # ?source=console|vmm &tail_bytes=N &follow=true
VM_FILES_GET = Route("GET", f"{PREFIX}/vms/{{ref}}/files")  # ?path=/in/guest -> application/x-tar
VM_FILES_PUT = Route("PUT", f"{PREFIX}/vms/{{ref}}/files")  # ?path=/in/guest <- application/x-tar
VM_EXEC = Route("WS", f"{PREFIX}/vms/{{ref}}/exec")
VM_CONSOLE = Route(
    "WS", f"{PREFIX}/vms/{{ref}}/console"
)  # ?tail_bytes=N, binary messages are what the guest writes; it takes no input
VM_PROXY = Route(
    "WS", f"{PREFIX}/vms/{{ref}}/proxy"
)  # ?port=22, binary messages are the bytes of the stream
PLAN_CREATE = Route("POST", f"{PREFIX}/plans/vm.create")
PLAN_START = Route("POST", f"{PREFIX}/plans/vm.start/{{ref}}")
PLAN_IMAGE_BUILD = Route("POST", f"{PREFIX}/plans/image.build")
IMAGES_LIST = Route("GET", f"{PREFIX}/images")
IMAGES_BUILD = Route("POST", f"{PREFIX}/images/build")
IMAGES_REGISTER = Route("POST", f"{PREFIX}/images/register")
IMAGES_IMPORT = Route("POST", f"{PREFIX}/images/import")
IMAGE_EXPORT = Route("POST", f"{PREFIX}/images/{{ref}}/export")
IMAGE_SHOW = Route("GET", f"{PREFIX}/images/{{ref}}")
IMAGE_SBOM = Route("GET", f"{PREFIX}/images/{{ref}}/sbom")  # SPDX 2.3 in JSON
IMAGE_DIFF = Route("GET", f"{PREFIX}/images/{{ref}}/diff/{{other}}")
IMAGE_DELETE = Route("DELETE", f"{PREFIX}/images/{{ref}}")
OPERATIONS_LIST = Route("GET", f"{PREFIX}/operations")
OPERATION_SHOW = Route("GET", f"{PREFIX}/operations/{{id}}")
OPERATION_EVENTS = Route("GET", f"{PREFIX}/operations/{{id}}/events")
OPERATION_CANCEL = Route("DELETE", f"{PREFIX}/operations/{{id}}")
EVENTS = Route("GET", f"{PREFIX}/events")
DISK_USAGE = Route("GET", f"{PREFIX}/disk-usage")
PRUNE = Route("POST", f"{PREFIX}/prune")
AUDIT = Route("GET", f"{PREFIX}/audit")
AUDIT_FIX = Route("POST", f"{PREFIX}/audit/fix")
METRICS = Route("GET", "/metrics")

ALL: Final = tuple(value for value in dict(globals()).values() if isinstance(value, Route))
