"""The kernel files of an image: ``vmlinux``, which every VMM boots, out of what came, and ``vmlinuz``, which is that if it is a bzImage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from banger.host import fs
from banger.images.kernel import (
    HEAD_BYTES,
    KernelFacts,
    bzimage_release,
    extract_vmlinux,
    is_bzimage,
    read_facts,
    read_kernel_file,
)
from banger.images.seal import seal_file
from banger.model.manifest import FileEntry, ImageManifest

VMLINUX, VMLINUZ = "vmlinux", "vmlinuz"
Known = Mapping[str, tuple[Path, FileEntry]]
"""By the digest of a bzImage, the vmlinux that was taken out of it before."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel in its directory. ``digest`` is that of the file as it came, ``how`` a few words on where vmlinux came from."""

    facts: KernelFacts
    digest: str
    files: dict[str, FileEntry]
    how: str


def known_kernels(images: Iterable[tuple[ImageManifest, Path]]) -> Known:
    """What is in ``images``: manifests and their directories."""
    return {
        manifest.files[VMLINUZ].digest: (directory / VMLINUX, manifest.files[VMLINUX])
        for manifest, directory in images
        if {VMLINUX, VMLINUZ} <= set(manifest.files) and manifest.boot_stack_matches
    }


def place_kernel(directory: Path, known: Known) -> Kernel:
    """Make and seal the kernel files in ``directory``, where the kernel that came is ``vmlinuz``, bzImage or ELF.

    InvalidInputError if it is no kernel for x86-64.
    """
    source, vmlinux = directory / VMLINUZ, directory / VMLINUX
    with source.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not is_bzimage(head):
        source.rename(vmlinux)
        facts = read_facts(vmlinux)
        entry = seal_file(vmlinux)
        return Kernel(facts, entry.digest, {VMLINUX: entry}, "as it came")
    came = seal_file(source)
    how = _take_known(known.get(came.digest), vmlinux)
    if not how:
        vmlinux.write_bytes(extract_vmlinux(read_kernel_file(source)))
    entry = seal_file(vmlinux)
    facts = read_facts(vmlinux)
    facts = KernelFacts(facts.release or bzimage_release(head), facts.pvh)
    return Kernel(facts, came.digest, {VMLINUX: entry, VMLINUZ: came}, how or "extracted")


def _take_known(known: tuple[Path, FileEntry] | None, vmlinux: Path) -> str:
    """Take a vmlinux that is there already, if it still is what it was: how that was done; empty if there is none."""
    if known is None:
        return ""
    path, wanted = known
    with suppress(OSError):  # it was deleted just now
        if fs.sparse_digest(path) == wanted.digest:
            return f"of another image, {fs.share_file(path, vmlinux)}"
    return ""
