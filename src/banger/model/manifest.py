"""What an image is: the content of ``images/<image-id>/manifest.json``."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

MANIFEST_VERSION = 1
MAX_CMDLINE_CHARS = (
    512  # of the 2048 that x86 kernels take, the VMM's and banger's own part included
)
CMDLINE_PATTERN = "[ -~]*"
SERVICE_PATTERN = "[a-z0-9][a-z0-9.-]{0,62}"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of an image: its size in bytes and its digest (`banger.host.fs.sparse_digest`)."""

    size_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Service:
    """A TCP service that the image promises; the VM is ready when all of them answer."""

    name: str
    port: int


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
    version: int = MANIFEST_VERSION

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
        if not self.inputs_digest:
            return f"banger image register --name {self.name} --replace, with the files that it was made of"
        recipe = self.recipe or self.name
        named = "" if recipe == self.name else f" --name {self.name}"
        return f"banger image build {shlex.quote(recipe)}{named} --force"
