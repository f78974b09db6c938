"""banger's own initramfs: busybox, the few modules that a microVM needs, and ``payload/init``."""

from __future__ import annotations

from banger.images.cpio import Cpio
from banger.images.roottar import RootParts

_APPLETS = "sh mount insmod ip date cat rm mkdir tar switch_root usleep echo ls".split()
_DIRECTORIES = ("bin", "dev", "proc", "sys", "newroot", "modules")


def make_initramfs(parts: RootParts, init: bytes) -> bytes:
    """The archive, uncompressed: unpacking costs the guest more than reading it costs the host."""
    cpio = Cpio()
    for directory in _DIRECTORIES:
        cpio.directory(directory)
    cpio.device("dev/console", 5, 1)
    cpio.file("bin/busybox", parts.busybox, 0o755)
    for applet in _APPLETS:
        cpio.symlink(f"bin/{applet}", "busybox")
    names = []
    for path in parts.module_order:
        name = path.rpartition("/")[2]
        names.append(name)
        cpio.file(f"modules/{name}", parts.modules[path])
    cpio.file("modules/order", "".join(f"{name}\n" for name in names).encode())
    cpio.file("init", init, 0o755)
    return cpio.finish()
