"""What an image is: the content of ``images/<image-id>/manifest.json``."""

from __future__ import annotations

from dataclasses import dataclass, field

MANIFEST_VERSION = 1


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
    ``initramfs.img``) to their sizes and digests. ``inputs_digest`` is the SHA-256 over all that the build was made
    from; an equal one means that a rebuild would give the same image. ``cmdline`` is the image's part of the
    kernel command line. ``disk_bytes`` is the virtual size of the root file system, the least that a VM may ask.
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
    version: int = MANIFEST_VERSION
