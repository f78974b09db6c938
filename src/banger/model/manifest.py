"""What an image is: the content of ``images/<image-id>/manifest.json``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field

from banger.model.errors import HostLacksError

MANIFEST_VERSION = 2
OLDEST_VERSION = 1
"""Manifests from this version on are brought up to date in place; older ones are refused."""
PAYLOAD = 2
"""What banger puts into root file systems, counted: 1 is the first; with 2 a guest grows its work disk and moves a nested home up."""
GROWS_WORK = 2
FROM_ROOT, GIVEN = "root", "given"
BUILT, REGISTERED, PROMOTED = "built", "registered", "promoted"
TAKEN, UPGRADED, SEEDED = "taken from the bundle", "manifest upgraded", "work seed renewed"
MAX_CMDLINE_CHARS = (
    512  # of the 2048 that x86 kernels take, the VMM's and banger's own part included
)
CMDLINE_PATTERN = "[ -~]*"
HTTP_PATH_PATTERN = "/[!-~]{0,199}"
SERVICE_PATTERN = "[a-z0-9][a-z0-9.-]{0,62}"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of an image: its size in bytes and its digest (`banger.host.fs.sparse_digest`)."""

    size_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Service:
    """A TCP service that the image promises; the VM is ready when all of them answer, one with a ``path`` to a GET of it, with 200."""

    name: str
    port: int
    path: str = ""


def services_json(services: Iterable[Service]) -> bytes:
    """What a guest's /etc/banger/services.json says: objects with ``name``, ``port``, and ``path`` where there is one."""
    told = [
        {"name": s.name, "port": s.port, **({"path": s.path} if s.path else {})} for s in services
    ]
    return json.dumps(told).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """What happened to an image: ``action`` in the past tense, with the id of the image that it came from and the VM's name where there are any."""

    at: str
    action: str
    parent: str = ""
    vm: str = ""


@dataclass(frozen=True, slots=True)
class ImageManifest:
    """An image and everything needed to boot it.

    ``files`` maps the names of the image's directory (``rootfs.img``, ``work-seed.img``, ``vmlinux``,
    ``initramfs.img``, and ``vmlinuz`` where the kernel came as a bzImage) to their sizes and digests. ``inputs_digest`` is the
    SHA-256 over all that the build was made from; an equal one means that a rebuild would give the same image; empty for an image
    that was registered. ``cmdline`` is the image's part of the kernel command line. ``disk_bytes`` is the virtual size of the
    root file system, the least that a VM may ask. ``recipe`` is what the image was built from.

    ``kernel_digest`` is that of the kernel as it came, to which ``vmlinux``, ``initramfs.img`` and the modules in it belong.
    ``pvh`` says whether ``vmlinux`` has a PVH entry.

    ``payload`` is the version of banger's files in the root file system (`PAYLOAD`). ``seed`` is the fingerprint of what the work seed has been
    made ready for (`banger.images.home.fingerprint`), empty if for nothing; ``seed_of`` is `FROM_ROOT` for a seed that can be made again out of
    the root file system's /root, `GIVEN` for one with content of its own. ``parent`` is the id of the image that a promoted VM was made from.
    """

    id: str
    name: str
    distribution: str
    release: str
    architecture: str
    created_at: str
    inputs_digest: str
    disk_bytes: int
    kernel_release: str
    cmdline: str
    files: dict[str, FileEntry]
    services: tuple[Service, ...] = ()
    packages: dict[str, str] = field(default_factory=dict)
    recipe: str = ""
    kernel_digest: str = ""
    pvh: bool = True
    payload: int = 1
    seed: str = ""
    seed_of: str = FROM_ROOT
    parent: str = ""
    history: tuple[HistoryEntry, ...] = ()
    version: int = MANIFEST_VERSION

    @property
    def guest_grows_work(self) -> bool:
        """Whether a guest of this image lets its work disk's file system fill the drive; else the host has to."""
        return self.payload >= GROWS_WORK

    @property
    def boot_stack_matches(self) -> bool:
        """Whether the kernel that the manifest lists is the one that the rest of the boot stack was made from."""
        source = self.files.get("vmlinuz") or self.files.get("vmlinux")
        return not self.kernel_digest or (
            source is not None and source.digest == self.kernel_digest
        )

    @property
    def remedy(self) -> str:
        """The command that makes this image whole again."""
        promoted = [entry.vm for entry in self.history if entry.action == PROMOTED]
        if promoted:
            return f"banger image promote {promoted[-1]} --name {self.name} --replace"
        if not self.inputs_digest:
            return f"banger image register --name {self.name} --replace, with the files that it was made of"
        recipe = self.recipe or self.name
        named = "" if recipe == self.name else f" --name {self.name}"
        return f"banger image build {shlex.quote(recipe)}{named} --force"


@dataclass(frozen=True, slots=True)
class Unusable:
    """An image whose manifest this banger cannot use: ``why``, and the command that mends it."""

    id: str
    name: str
    why: str
    hint: str

    def to_error(self) -> HostLacksError:
        """For who asks for it."""
        return HostLacksError(
            f"image {self.name or self.id} cannot be used", detail=self.why, hint=self.hint
        )
