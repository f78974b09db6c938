"""Whether kernel, initramfs and the modules in it belong together, before a VM boots with them: by their digests.

A digest of a kernel takes a tenth of a second, so it is taken once for a file that stays as it is.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from banger.host import fs
from banger.model.errors import HostLacksError
from banger.model.machine import BootStack

_REMEMBERED = 256


def check_boot_files(boot: BootStack) -> None:
    """HostLacksError with the command that mends it if somebody replaced one of the files that boot the image."""
    manifest = boot.manifest
    if not manifest.boot_stack_matches:
        raise HostLacksError(
            f"image {manifest.name} has another kernel than its initramfs was made for",
            detail=f"the manifest in {boot.kernel.parent} lists a kernel with another digest than that of its boot stack",
            hint=manifest.remedy,
        )
    for path in (boot.kernel, boot.initramfs, boot.bzimage):
        entry = manifest.files.get(path.name) if path is not None else None
        if path is None or entry is None:
            continue
        if _current_digest(path) != entry.digest:
            raise HostLacksError(
                f"{path} is not the file that image {manifest.name} was made with",
                detail="its digest differs from the manifest's; kernel, initramfs and modules of an image belong together",
                hint=manifest.remedy,
            )


def _current_digest(path: Path) -> str:
    found = path.stat()
    stamp = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return _digest(os.fspath(path), stamp)


@lru_cache(maxsize=_REMEMBERED)
def _digest(path: str, stamp: tuple[int, ...]) -> str:
    """The digest of ``path`` while it is the file that ``stamp`` describes: a write changes its ctime, a replacement its inode."""
    del stamp
    return fs.sparse_digest(Path(path))
