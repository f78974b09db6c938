"""banger's own initramfs: busybox, the few modules that a microVM needs, and ``payload/init``."""

from __future__ import annotations

from collections.abc import Mapping

from banger.images.cpio import Cpio
from banger.images.modules import plain_name
from banger.images.resources import payload_dir

_APPLETS = "sh mount insmod ip date cat rm mkdir rmdir mv tar switch_root usleep echo ls".split()
_DIRECTORIES = ("bin", "dev", "proc", "sys", "newroot", "modules")


def make_initramfs(busybox: bytes, modules: Mapping[str, bytes], init: bytes) -> bytes:
    """The archive, uncompressed: unpacking costs the guest more than reading it costs the host.

    ``modules`` maps paths to contents, which are not compressed either, in loading order.
    """
    cpio = Cpio()
    for directory in _DIRECTORIES:
        cpio.directory(directory)
    cpio.device("dev/console", 5, 1)
    cpio.file("bin/busybox", busybox, 0o755)
    for applet in _APPLETS:
        cpio.symlink(f"bin/{applet}", "busybox")
    names = []
    for path, data in modules.items():
        names.append(plain_name(path))
        cpio.file(f"modules/{names[-1]}", data)
    cpio.file("modules/order", "".join(f"{name}\n" for name in names).encode())
    cpio.file("flatten.sh", (payload_dir() / "flatten.sh").read_bytes())
    cpio.file("init", init, 0o755)
    return cpio.finish()
