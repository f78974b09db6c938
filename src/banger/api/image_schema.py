"""The structs of the API that images have, and what they share with the others; see `banger.api.schema`, which has all of them."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from banger.model.ids import NAME_PATTERN
from banger.model.image_plan import What
from banger.model.manifest import (
    CMDLINE_PATTERN,
    HTTP_PATH_PATTERN,
    MAX_CMDLINE_CHARS,
    SERVICE_PATTERN,
)

Name = Annotated[
    str,
    Meta(
        description="a host label: a-z, 0-9 and '-'",
        extra_json_schema={"pattern": f"^{NAME_PATTERN}$", "maxLength": 63},
    ),
]


class ServiceStatus(Struct):
    """A service that the image declares, and whether it answers."""

    name: str
    port: int
    ready: bool


class ImageHistory(Struct):
    """What happened to an image, with the id of the image that it came from and the name of the VM, where there are any."""

    at: str
    action: str
    parent: str | None = None
    vm: str | None = None


class Image(Struct):
    """One image; sizes are of the virtual root disk and of what is allocated on the host's disk. ``parent`` is the id of the image that a promoted VM
    was made from; ``seed`` says whether a clone of its work seed is a home as it is.
    """

    id: str
    name: str
    distribution: str
    release: str
    architecture: str
    created_at: str
    disk_bytes: int
    allocated_bytes: int
    kernel_release: str
    services: list[ServiceStatus]
    packages: dict[str, str]
    used_by: list[str]
    parent: str | None = None
    history: list[ImageHistory] = []
    seed: Literal["current", "older", "none"] = "current"


class ImageBuild(Struct, forbid_unknown_fields=True):
    """Body of POST /v1/images/build: a recipe's name or absolute path; ``force`` rebuilds an unchanged one."""

    recipe: str = "debian"
    name: str | None = None
    force: bool = False


class PlannedStage(Struct):
    """A stage of an image build, with the programs that it would run."""

    name: str
    detail: str
    commands: list[list[str]]


class ImagePlan(Struct):
    """What an image build would do. ``up_to_date`` is the id of an image that makes it needless, or empty; ``mirrors`` is empty for
    the tools' own default; ``files`` and ``hooks`` have SHA-256 digests; ``cached_*`` is what the download cache holds.
    """

    image: str
    recipe: str
    system: str
    inputs_digest: str
    up_to_date: str
    mirrors: list[str]
    packages: list[str]
    users: list[str]
    files: dict[str, str]
    hooks: dict[str, str]
    services: list[str]
    disk_bytes: int
    work_seed_bytes: int
    cached_files: int
    cached_bytes: int
    stages: list[PlannedStage]


class Difference(Struct):
    """A package or a file that differs; ``before`` is empty for what was added, ``after`` for what was removed."""

    what: What
    name: str
    before: str
    after: str


class ImageDiff(Struct):
    """How the image ``after`` differs from ``before``, in packages and in the files of the root file system."""

    before: str
    after: str
    packages: list[Difference]
    files: list[Difference]


class Service(Struct, forbid_unknown_fields=True):
    """A TCP service of the guest that must answer before a VM counts as ready; with a ``path`` it must answer a GET of it with 200."""

    name: Annotated[
        str,
        Meta(extra_json_schema={"pattern": f"^{SERVICE_PATTERN}$"}),
    ]
    port: Annotated[int, Meta(ge=1, le=65535)]
    path: Annotated[str, Meta(pattern=f"^({HTTP_PATH_PATTERN})?$")] = ""


class ImageRegister(Struct, forbid_unknown_fields=True):
    """Body of POST /v1/images/register. Files are absolute paths on the daemon's host; what is not given comes from the image ``base``.

    ``modules`` is a directory or tar, or "none" for a kernel that has its drivers built in; ``replace`` takes the name from an
    image that has it. With ``boot_only`` the base gives its boot stack alone; ``ref`` and ``start_command`` are as of ImageImport.
    """

    name: Name
    base: str | None = None
    rootfs: str | None = None
    kernel: str | None = None
    initramfs: str | None = None
    modules: str | None = None
    work_seed: str | None = None
    cmdline: Annotated[
        str | None,
        Meta(extra_json_schema={"pattern": f"^{CMDLINE_PATTERN}$", "maxLength": MAX_CMDLINE_CHARS}),
    ] = None
    services: list[Service] | None = None
    replace: bool = False
    boot_only: bool = False
    ref: str | None = None
    start_command: bool = False


class ImageImport(Struct, forbid_unknown_fields=True):
    """Body of POST /v1/images/import. ``path`` is absolute, on the daemon's host: an exported image, an OCI layout (directory or tar),
    a ``docker save`` archive, or a root file system (tar, ext4, qcow2).

    ``kernel_from`` is the image whose boot stack it gets where it brings none; ``ref`` picks one of several images in an archive;
    ``start_command`` makes the container's own command a service of the guest.
    """

    path: str
    name: Name | None = None
    kernel_from: str | None = None
    ref: str | None = None
    start_command: bool = False
    services: list[Service] | None = None
    replace: bool = False


class ImageExport(Struct, forbid_unknown_fields=True):
    """Body of POST /v1/images/{ref}/export. ``path`` is absolute, on the daemon's host; ``replace`` allows a file to be there."""

    path: str
    format: Literal["banger", "oci"] = "banger"
    replace: bool = False


class ImagePromote(Struct, forbid_unknown_fields=True):
    """Body of POST /v1/vms/{ref}/promote. ``with_work``: the work disk becomes the image's work seed; ``clean_history``: what shells remember goes;
    ``replace`` takes the name from an image that has it.
    """

    name: Name
    with_work: bool = False
    clean_history: bool = False
    replace: bool = False
